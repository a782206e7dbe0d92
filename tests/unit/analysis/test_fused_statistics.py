"""Statistics straight from the store are those of the features that were encoded, and those of a float64 reference."""

import json

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner
from thresher.analysis.encode import encode
from thresher.analysis.options import EncodeOptions, StatsOptions
from thresher.analysis.stats import stats
from thresher.analysis.stored_statistics import open_statistics
from thresher.cli import main
from thresher.progress import Reporter
from thresher.store.errors import StoreError

QUICK = {"figures": False, "nearest": 0, "null_draws": 0}
COUNTS_ALONE = {**QUICK, "samples": 0, "cofiring": 0}
QUALITY = ("mse", "normalized_mse", "explained_variance", "explained_energy", "l1")


def counted(run, **options):
    stats(run.path, StatsOptions(**{**QUICK, "overwrite": True, **options}))
    members = zarr.open_group(str(run.path / "stats.zarr"), mode="r").members(max_depth=None)
    arrays = {name: array[:] for name, array in members if isinstance(array, zarr.Array)}
    return arrays, json.loads((run.path / "stats.json").read_text())


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def with_embeddings(run, n, seed=0):
    """A file of embeddings, one a row; the fourth is none."""
    embeddings = np.random.default_rng(seed).standard_normal((n, 6)).astype(np.float32)
    embeddings[3:4] = 0
    path = run.path.parent / f"embeddings-{seed}.npy"
    np.save(path, embeddings)
    return str(path)


@pytest.mark.parametrize(("k", "split"), [(None, "all"), (5, "heldout"), (5, "train")])
def test_they_equal_those_of_encode_and_stats_array_for_array(make_store, make_run, k, split):
    store = make_store(n=9_001, invalid=(0, 4095, 4096, 9_000), rows_per_chunk=512, thumbnails=False)
    run = make_run(store.path, k=k)
    encode(run.path, EncodeOptions(split=split))
    options = {"split": split, "embeddings": with_embeddings(run, 9_001), "samples": 5, "min_labelled": 4}
    stored, stored_document = counted(run, **options)
    fused, document = counted(run, **options, from_store=True, task_bytes=1)
    assert {"samples/row", "labels/sum", "labels/effective_n", "cofiring/pmi", "monosemanticity"} <= set(stored)
    assert_same(fused, stored)
    same = ("split", "n_rows", "n_invalid_rows", "n_labelled_rows", "n_dead", "l0", "l0_above_0.1", "max_l0_row", "uld")
    same += ("details", "absent", "l0_without_uld", "max_l0_row_uld")
    assert {name: document[name] for name in same} == {name: stored_document[name] for name in same}
    for name in QUALITY:
        assert document[name] == pytest.approx(stored_document[name], rel=1e-13)
    assert not list(run.path.glob(".details-*"))
    intervals, expected = document["intervals"]["splits"], stored_document["intervals"]["splits"]
    assert intervals.keys() == expected.keys() == ({"train", "heldout", "all"} if split == "all" else {split, "all"})
    for name, of_split in expected.items():
        assert of_split["n_sections"] > 20
        for number, wanted in of_split.items():
            assert intervals[name][number] == pytest.approx(wanted, rel=1e-9), (name, number)


def test_the_command_prints_the_intervals_that_encoding_before_gives(make_store, make_run):
    run = make_run(make_store(n=2_000, thumbnails=False).path)
    options = ["stats", str(run.path), "--quiet", "--no-figures", "--overwrite", "--split", "train"]
    encode(run.path, EncodeOptions())
    printed = [CliRunner().invoke(main, options), CliRunner().invoke(main, [*options, "--from-store"])]
    assert [done.exit_code for done in printed] == [0, 0], printed[1].output
    stored, fused = ([line for line in done.output.splitlines()[1:] if "95 %" in line] for done in printed)
    assert len(stored) == 6
    assert fused == stored


def test_l0_without_the_uld_cluster_is_that_of_stored_features(make_store, make_run):
    run = make_run(make_store(n=5_000, d=8, rows_per_chunk=512, thumbnails=False).path, d_sae=200)
    run.sae.b_enc[100:], run.sae.W_enc[:, 100:] = 1e-3, run.sae.W_enc[:, 100:] * 1e-3
    run.sae.save(run.path / "sae.safetensors")
    encode(run.path, EncodeOptions())
    stored, stored_document = counted(run)
    fused, document = counted(run, from_store=True, task_bytes=1)
    assert "l0/without_uld" in stored
    assert_same(fused, stored)
    for name in ("l0_without_uld", "max_l0_row_uld", "uld"):
        assert document[name] == stored_document[name] is not None


@pytest.mark.parametrize("values", ["tied", "spread", "dead"])
def test_samples_are_found_exactly_however_many_passes_it_takes(make_store, make_run, monkeypatch, values):
    rows = np.random.default_rng(0).standard_normal((3_000, 8))
    if values == "tied":
        rows = rows[np.arange(3_000) % 4]
    run = make_run(make_store(rows=rows, n=3_000, rows_per_chunk=512, thumbnails=False).path)
    if values == "dead":
        run.sae.b_enc[::2] = -1e4
        run.sae.save(run.path / "sae.safetensors")
    encode(run.path, EncodeOptions())
    stored, _ = counted(run, cofiring=0, samples=3)
    said = Said()
    monkeypatch.setattr("thresher.analysis.fused_details.MOST_PASSED", 40)  # of some 10,000 at first
    stats(
        run.path,
        StatsOptions(**QUICK, overwrite=True, from_store=True, task_bytes=1, samples=3, cofiring=0),
        said,
    )
    assert sum("where samples lie" in line for line in said.lines) >= (6 if values == "tied" else 1)
    fused, _ = counted(run, cofiring=0, samples=3, from_store=True, task_bytes=1)
    assert_same(fused, stored)


class Said(Reporter):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_cofiring_is_counted_on_the_same_rows(make_store, make_run):
    run = make_run(make_store(n=9_001, invalid=(700, 5_000), rows_per_chunk=512, thumbnails=False).path)
    encode(run.path, EncodeOptions())
    stored, stored_document = counted(run, cofiring_rows=1_000, samples=0)
    fused, document = counted(run, cofiring_rows=1_000, samples=0, from_store=True, task_bytes=1)
    assert_same(fused, stored)
    assert document["details"] == stored_document["details"]
    assert 900 < document["details"]["cofiring"]["n_rows"] <= 1_000


def test_where_no_detail_is_asked_for_the_rows_are_encoded_once(make_store, make_run):
    run = make_run(make_store(n=500, thumbnails=False).path)
    said = Said()
    result = stats(run.path, StatsOptions(**COUNTS_ALONE, from_store=True), said)
    assert not any("twice" in line or "once more" in line for line in said.lines)
    assert result.summary["absent"]["samples"] == "left out by --samples 0"


def test_embeddings_of_other_rows_are_refused(make_store, make_run):
    run = make_run(make_store(n=300, thumbnails=False).path)
    with pytest.raises(StoreError, match=r"holds 299 embeddings; one for each of the 300 rows"):
        counted(run, from_store=True, embeddings=with_embeddings(run, 299))


def test_they_equal_a_float64_reference(make_store, make_run, dense):
    run = make_run(make_store(n=4_500, invalid=(3, 4_100), rows_per_chunk=512, thumbnails=False).path)
    counted(run, from_store=True, task_bytes=1, k=7, min_labelled=5)
    expected, found = dense(run), open_statistics(run.path).statistics
    f = np.nan_to_num(expected["f"])
    np.testing.assert_array_equal(found.n_active, (f > 0).sum(0))
    np.testing.assert_allclose(found.sum, f.sum(0), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(found.top_value, -np.sort(-f, axis=0)[:7].T, rtol=1e-4, atol=1e-5)
    assert found.n_rows == 4_498
    of = found.top_row >= 0
    rows = found.top_row[of]
    np.testing.assert_allclose(f[rows, np.nonzero(of)[0]], found.top_value[of], rtol=1e-4, atol=1e-5)


@pytest.mark.faults  # it starts two processes that import torch
def test_two_processes_count_the_same_and_both_take_part(make_store, make_run):
    run = make_run(make_store(n=20_000, rows_per_chunk=4096, thumbnails=False).path)
    details = {"from_store": True, "embeddings": with_embeddings(run, 20_000), "cofiring_rows": 9_000}
    here, document = counted(run, task_bytes=1, **details)
    result = stats(run.path, StatsOptions(**QUICK, overwrite=True, task_bytes=1, workers=2, **details))
    members = zarr.open_group(str(run.path / "stats.zarr"), mode="r").members(max_depth=None)
    assert_same({name: array[:] for name, array in members if isinstance(array, zarr.Array)}, here)
    assert result.n_processes == 2
    assert result.summary["mse"] == pytest.approx(document["mse"], rel=1e-12)


@pytest.mark.parametrize("n", [1, 5])
def test_dead_features_a_single_row_and_one_on_which_all_fire(make_store, make_run, n):
    run = make_run(make_store(n=n, thumbnails=False).path)
    run.sae.b_enc[:] = -1e4
    run.sae.save(run.path / "sae.safetensors")
    arrays, document = counted(run, from_store=True)
    assert (document["n_dead"], document["l0"]["max"]) == (24, 0)
    assert (arrays["top_row"] == -1).all()
    run.sae.b_enc[:] = 1e3
    run.sae.save(run.path / "sae.safetensors")
    arrays, document = counted(run, from_store=True)
    assert (document["n_dead"], document["l0"]["mean"]) == (0, 24)
    assert (arrays["n_active"] == n).all()


def test_rows_that_tie_are_kept_in_their_order(make_store, make_run):
    rows = np.tile(np.random.default_rng(0).standard_normal(8), (5_000, 1))
    run = make_run(make_store(rows=rows, n=5_000, rows_per_chunk=1024, thumbnails=False).path)
    arrays, _ = counted(run, from_store=True, task_bytes=1)
    alive = arrays["n_active"] > 0
    assert alive.any()
    assert (arrays["top_row"][alive] == np.arange(20)).all()


def test_another_store_and_a_number_of_rows_go_with_it_only(make_store, make_run):
    run = make_run(make_store().path)
    other = make_store(n=100, name="validation.zarr", seed=5)
    _, document = counted(run, from_store=True, store=str(other.path), rows=40)
    assert document["n_rows"] == 40
    with pytest.raises(ValueError, match="go with from_store"):
        StatsOptions(rows=5)
    with pytest.raises(StoreError, match="run `thresher encode` first"):
        stats(run.path, StatsOptions(overwrite=True))


def test_what_bf16_finds_is_counted_alike(make_store, make_run):
    run = make_run(make_store(n=2_000, d=64, rows_per_chunk=512, thumbnails=False).path, d_sae=256)
    run.sae.b_enc[:] = torch.randn(256, generator=torch.Generator().manual_seed(0)) - 20
    run.sae.save(run.path / "sae.safetensors")
    exact, _ = counted(run, from_store=True)
    rounded, _ = counted(run, from_store=True, precision="bf16")
    np.testing.assert_array_equal(rounded["n_active"], exact["n_active"])
    np.testing.assert_array_equal(rounded["top_row"], exact["top_row"])
    np.testing.assert_allclose(rounded["sum"], exact["sum"], rtol=1e-5)
