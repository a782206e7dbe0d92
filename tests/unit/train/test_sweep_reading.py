"""What a sweep reads of its store: as much as one of its members alone."""

from collections import Counter

import pytest
from thresher.store.format import Site
from thresher.store.reader import ActivationArray
from thresher.train.loop import train
from thresher.train.sweep import train_sweep

SHARED = {
    "lr": [3e-3], "warmup": [10], "batch_size": [64], "rows": [64 * 40], "device": ["cpu"], "dead_after_rows": [128],
    "log_every": [5], "eval_every": [20],
}  # fmt: skip


@pytest.fixture
def rows_read(monkeypatch):
    """Rows read of each layer."""
    read, read_rows = Counter(), ActivationArray._read_rows

    def counted(array, starts, lengths, out):
        read[array.site.layer] += len(out)
        read_rows(array, starts, lengths, out)

    monkeypatch.setattr(ActivationArray, "_read_rows", counted)
    return read


@pytest.mark.parametrize("n_members", [2, 4])
@pytest.mark.parametrize(
    "varying",
    [
        {"k": [2, 4, 1, 3]},
        {"expansion": [2.0, 4.0, 3.0, 8.0]},
        {"seed": [0, 1, 2, 3]},
        {"normalize": ["standardize", "none", "expected-norm", "layer-norm"]},
        {"b_dec_init": ["mean", "zero", "geometric-median"]},
        {"variant": ["topk", "relu", "batchtopk", "jumprelu"]},
    ],
    ids=lambda varying: next(iter(varying)),
)
def test_each_row_is_read_once_whatever_the_number_of_members(small_store, tmp_path, rows_read, varying, n_members):
    given = {name: values[:n_members] for name, values in varying.items()}
    result = train_sweep({**SHARED, **given}, small_store, tmp_path / "sweep")
    assert len(result.results) == len(*given.values())
    sample, batches, evaluations = 11 * 64, 40 * 64, 2 * 7  # the first batches that hold all 692 training rows
    assert rows_read == {1: sample + batches + evaluations}


@pytest.mark.parametrize("n_members", [2, 4])
def test_each_sample_for_dead_features_is_read_once(small_store, tmp_path, rows_read, n_members):
    given = {**SHARED, "k": [1], "expansion": [16.0], "dead_remedy": ["resample"], "resample_every": [10]}
    result = train_sweep({**given, "seed": list(range(n_members))}, small_store, tmp_path / "sweep")
    for member in result.sweep.members:
        assert (tmp_path / "sweep" / member.name / "log.txt").read_text().count("dead features resampled") == 3
    start, resampling = 11 * 64, 3 * 11 * 64
    of_sweep = {1: start + 40 * 64 + 2 * 7 + resampling}
    assert rows_read == of_sweep
    rows_read.clear()
    train(result.sweep.members[0].options, small_store, tmp_path / "alone")
    assert rows_read == of_sweep


@pytest.mark.parametrize(
    "given",
    [{"layer": [1, 2, 3], "k": [2, 4]}, {"layer": [1], "to_layer": [2, 3], "k": [2, 4]}],
    ids=["SAEs", "transcoders"],
)
def test_each_row_of_each_layer_is_read_once(make_store, tmp_path, rows_read, given):
    store = make_store(300, 8, sites=(Site(1), Site(2), Site(3))).path
    train_sweep({**SHARED, "expansion": [2.0], **given}, store, tmp_path / "sweep")
    assert rows_read == dict.fromkeys([1, 2, 3], 5 * 64 + 40 * 64 + 2 * 3)
