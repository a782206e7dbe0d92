"""What `info` says of a store: true numbers, in lines that fit a terminal, the same in its JSON."""

import json
from functools import partial

import numpy as np
import pytest
from explored import make_explored_run
from thresher.analysis import store_description
from thresher.analysis.describe import describe
from thresher.command import to_json
from thresher.results import table
from thresher.store.errors import StoreError
from thresher.store.format import Site
from thresher.store.loading import plan_loading
from thresher.store.objects import open_objects
from thresher.store.parts import add_part, merge_stores, next_part
from thresher.store.verify import verify_store


def told(place):
    """Each named value of a description, its lines joined; and the record as JSON gives it."""
    description, text, name = describe(place), {}, ""
    for head, value in description.lines:
        name = head or name
        text[name] = f"{text[name]} {value}" if name in text else value
    return text, json.loads(to_json(description.record))


def test_an_unfinished_store_is_described_with_how_far_it_got(make_store):
    text, record = told(make_store(200, windows=range(2)).path)
    assert "holds 128 of 200 rows" in text["state"]
    assert "layer 1 (0-based) resid_post cls" in text["arrays"]
    assert record["finished"] is False
    assert record["n_rows"] == 200


def test_a_finished_store_says_so(make_store):
    _, record = told(make_store(200, invalid=(3,)).path)
    assert record["finished"] is True
    assert record["n_valid"] == 199


def test_a_store_of_unreadable_images_foretells_nothing(make_store):
    text, record = told(make_store(9, invalid=range(9)).path)
    assert record["n_valid"] == 0
    assert text["reading"] == "no rows to train on"
    assert "here there is no row to tell by" in text["off centre"]


def test_what_is_neither_store_nor_run_is_refused(tmp_path):
    with pytest.raises(StoreError, match="neither an activation store nor a run"):
        describe(tmp_path)
    with pytest.raises(StoreError, match="does not exist"):
        describe(tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_every_array_s_numbers_are_numpy_s_and_those_of_the_json(make_store, dtype, tokens):
    widths = {Site(3): 6, Site(3, "mlp_act"): 24, Site(11, "attn_out"): 6}
    made = make_store(300, widths=widths, dtype=dtype, invalid=(1, 2), tokens=tokens)
    text, record = told(made.path)
    tolerance = {"float16": 1e-3, "float32": 1e-6, "bfloat16": 1e-2}[dtype]  # what rounding to the dtype costs
    assert [site["site"] for site in record["sites"]] == [site.path for site in widths]
    for site, found in zip(widths, record["sites"], strict=True):
        x = made.rows[site][made.valid].astype(np.float64)
        mean = x.mean(axis=0)
        deviation = np.sqrt(((x - mean) ** 2).sum(axis=1).mean())
        assert (found["d_in"], found["n_rows"], found["n_unreadable"]) == (widths[site], 298 * tokens, 2 * tokens)
        assert found["mean_norm"] == pytest.approx(np.linalg.norm(x, axis=1).mean(), rel=tolerance)
        assert found["norm_of_mean"] == pytest.approx(np.linalg.norm(mean), rel=tolerance)
        assert found["deviation"] == pytest.approx(deviation, rel=tolerance)
        assert found["mean_to_deviation"] == pytest.approx(np.linalg.norm(mean) / deviation, rel=tolerance)
        assert found["committed"]["max_abs"] == pytest.approx(np.abs(x).max(), rel=1e-6)
        assert (found["zero_share"], found["not_finite_share"]) == (0, 0)
        shown = [found["mean_norm"], found["mean_to_deviation"], found["committed"]["max_abs"]]
        line = f"{site.layer} {site.site} cls {widths[site]} {' '.join(f'{n:.4g}' for n in shown)} 0 %"
        assert line in " ".join(text["arrays"].split())
        top = found["largest"][0]
        assert top["index"] == np.argmax((x**2).mean(axis=0))
        line = (
            f"{site.layer} {site.site} cls {top['index']} {top['mean']:.4g} {top['deviation']:.4g} {top['max_abs']:.4g}"
        )
        assert line in " ".join(text["largest"].split())


def test_the_lines_fit_a_terminal_of_80_columns(make_store):
    widths = {Site(layer, site): 1536 for layer in (9, 22) for site in ("resid_post", "mlp_out")}
    rows = np.random.default_rng(0).standard_normal((300, 1536)) - 77
    for settings in ({}, {"order": "source", "codec": "zstd", "n_labels": 1}, {"dtype": "bfloat16"}):
        description = describe(make_store(300, widths=widths, rows=rows, name=str(settings), **settings).path)
        for line in table(description.lines).splitlines():
            assert len(line.rstrip()) <= 80, line


def test_rows_off_centre_are_told_with_the_remedy(make_store):
    rng = np.random.default_rng(0)
    for shift, says in ((0.0, "below 1, as here, few"), (3.0, "--normalize standardize")):
        rows = rng.standard_normal((300, 8)) + shift
        text, record = told(make_store(300, rows=rows, name=f"{shift}.zarr").path)
        assert says in text["off centre"]
        assert (record["sites"][0]["mean_to_deviation"] > 1) == (shift > 1)


def test_the_room_that_float16_leaves_is_told_from_every_chunk(make_store):
    rows = np.ones((300, 8), np.float32)
    rows[211, 3] = -655.04
    assert "up to 65,504: 100 times as much" in told(make_store(300, rows=rows).path)[0]["max |x|"]
    rows[211, 3] = 70_000
    wide = make_store(300, rows=rows, dtype="bfloat16", name="wide.zarr")
    assert "too little for these rows" in told(wide.path)[0]["max |x|"]


def test_expected_and_measured_mixing_are_told(make_store):
    text, record = told(make_store(2000, 4, n_labels=20, sorted_labels=True).path)
    measured = record["mixing"]["measured"]
    assert record["mixing"]["expected"] == 1
    assert measured["batch_size"] == 1980 // 8
    assert measured["mean"] == pytest.approx(1, abs=0.15)
    assert text["mixing"].startswith("1.00 expected in batches of 4,096 rows")
    assert f"{measured['mean']:.2f} measured, the mean over 50 batches of 247 rows" in text["mixing"]
    assert "straight into the batch" in text["reading"]


def test_a_store_in_source_order_tells_what_good_mixing_takes(make_store, monkeypatch):
    # At most 200 rows in each of two buffers, filled by whole chunks: a tenth of the 1,980 training rows
    small = partial(plan_loading, memory_bytes=2 * 200 * 8)
    monkeypatch.setattr(store_description, "plan_loading", small)
    monkeypatch.setattr(store_description, "MEASURED_BATCH", 100)
    text, record = told(make_store(2000, 4, order="source", codec="zstd").path)
    # 1 + (B - 1) (r - 1) / (G - 1) x (1 - G / N)
    assert record["mixing"]["expected"] == pytest.approx(1 + 99 * 63 / 197 * (1 - 198 / 1980))
    assert text["mixing"].startswith(f"{record['mixing']['expected']:.2f} expected in batches of 100 rows")
    assert "buffer of 198 rows" in text["reading"]
    assert text["reading"].endswith("; each process of a torchrun fills one of its own with all rows")
    assert "--loader-memory" in text["to know"]
    assert text["row order"] == "that of the source"


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"unlabelled": range(300)}, "for want of labels"), ({"n": 5}, "for want of labels or of rows")],
)
def test_what_cannot_be_measured_says_why(make_store, settings, why):
    text, record = told(make_store(**settings).path)
    assert why in text["mixing"]
    assert record["mixing"]["measured"] is None


def test_a_store_of_too_many_rows_is_counted_in_part(make_store, monkeypatch):
    monkeypatch.setattr(store_description, "count_labels", partial(store_description.count_labels, most_rows=100))
    monkeypatch.setattr(store_description, "_MOST_CHUNKS", 4)
    text, record = told(make_store(300).path)
    assert "100 rows (of the first 100) in 5 classes" in text["labels"]
    assert "there are too many rows" in text["mixing"]
    assert record["n_rows_whose_labels_were_counted"] == 100
    assert text["size"].startswith("too many files")
    assert record["size_bytes"] is None


def test_a_store_without_a_readable_row_has_no_numbers(make_store):
    text, record = told(make_store(20, invalid=range(20)).path)
    assert "1 resid_post cls 8 - - 0 -" in " ".join(text["arrays"].split())
    assert record["sites"][0]["mean_norm"] is None
    assert record["sites"][0]["n_unreadable"] == 20


def test_what_a_codec_saves_is_told_from_the_store_s_own_chunks(make_store):
    rows = np.zeros((300, 8))
    rows[:, 0] = 1
    made = make_store(300, rows=rows, codec="zstd")
    text, record = told(made.path)
    stored = sum(path.stat().st_size for path in (made.path / Site(1).path / "c").glob("*/0"))
    assert record["codec"]["ratio"] == pytest.approx(5 * 64 * 16 / stored)
    assert record["codec"]["ratio"] > 5
    assert text["codec"] == record["codec"]["advice"]
    assert f"zstd saves {1 - stored / (5 * 64 * 16):.0%}".replace("%", " %") in text["codec"]


def test_the_parts_of_a_store_are_counted_where_they_lie(make_store, tmp_path):
    paths = [make_store(200, name=name, key_prefix=name, seed=seed).path for seed, name in enumerate("ab")]
    merge_stores([str(path) for path in paths], str(tmp_path / "both"))
    text, record = told(tmp_path / "both")
    files = [p for path in (*paths, tmp_path / "both") for p in path.rglob("*") if p.is_file()]
    assert record["size_bytes"] == sum(p.stat().st_size for p in files if p.name != ".lock")
    assert record["n_parts"] == 2
    assert text["row order"] == "part ../a: random, seed 0; part ../b: random, seed 1"
    assert text["images"] == "part ../a: made up (200); part ../b: made up (200)"
    assert text["rows"].startswith("400; ")


def test_a_part_is_called_by_its_folder_as_verify_calls_it(make_store):
    made = make_store(200)
    objects = open_objects(made.path)
    part = next_part(objects)
    make_store(100, place=part.url, key_prefix="more ", order="source")
    add_part(objects, part)
    text, _ = told(made.path)
    assert text["row order"] == "its own rows: random, seed 0; part parts/1: that of the source"
    (made.path / "parts/1" / Site(1).path / "c/0/0").unlink()
    (problem,) = verify_store(made.path).problems
    assert str(problem).startswith("part parts/1: layers/1/resid_post/cls, chunk 0, rows 200 to 263: ")


def test_parts_of_different_codecs_and_chunks_are_told_together(make_store, tmp_path):
    rows = np.zeros((300, 8))
    rows[:, 0] = 1
    paths = [
        make_store(300, name=name, key_prefix=name, rows=rows, codec=codec, rows_per_chunk=n).path
        for name, codec, n in (("a", "zstd", 64), ("b", "none", 100))
    ]
    merge_stores([str(path) for path in paths], str(tmp_path / "both"))
    text, record = told(tmp_path / "both")
    stored = sum(p.stat().st_size for path in paths for p in (path / Site(1).path / "c").glob("*/0"))
    assert record["codec"]["name"] == "none, zstd"
    assert record["codec"]["ratio"] == pytest.approx((5 * 64 + 3 * 100) * 16 / stored)
    assert text["codec"].startswith("none, zstd in different parts: 4")
    assert text["chunks"] == "8 of 64 or 100 rows"
    assert record["rows_per_chunk"] == [64, 100]


def test_a_store_in_a_bucket_is_described_alike(make_store):
    here, there = make_store(200, seed=4), make_store(200, seed=4, place="memory://described/x")
    record, remote = told(here.path)[1], told("memory://described/x")[1]
    assert there.spec == here.spec
    assert remote["sites"] == record["sites"]
    assert remote["size_bytes"] == record["size_bytes"]
    assert "pays in a bucket" in remote["codec"]["advice"]


def test_a_run_s_results_are_those_that_are_there(tmp_path):
    made = make_explored_run(tmp_path, n_features=24, n_images=40)
    before = told(made.path)[0]["results"].split(", ")
    (made.path / "visualisations").mkdir()
    (made.path / "names.tsv").write_text("feature\tname\n")
    after = told(made.path)[0]["results"].split(", ")
    assert {"features.zarr", "stats.json"} <= set(before)
    assert set(after) - set(before) == {"names.tsv", "visualisations"}
