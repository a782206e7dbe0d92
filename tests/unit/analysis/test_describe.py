import json

import pytest
from thresher.analysis.describe import describe
from thresher.command import to_json
from thresher.store.errors import StoreError


def test_an_unfinished_store_is_described_with_how_far_it_got(make_store):
    made = make_store(200, windows=range(2))
    description = describe(made.path)
    text = dict(description.lines)
    assert "holds 128 of 200 rows" in text["state"]
    assert "layer 1 (0-based) resid_post cls" in text["arrays"]
    record = json.loads(to_json(description.record))
    assert record["finished"] is False
    assert record["n_rows"] == 200


def test_a_finished_store_says_so(make_store):
    record = json.loads(to_json(describe(make_store(200, invalid=(3,)).path).record))
    assert record["finished"] is True
    assert record["n_valid"] == 199


def test_what_is_neither_store_nor_run_is_refused(tmp_path):
    with pytest.raises(StoreError, match="neither an activation store nor a run"):
        describe(tmp_path)
    with pytest.raises(StoreError, match="does not exist"):
        describe(tmp_path / "nowhere")
