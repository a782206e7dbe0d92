"""`stats` of a run and of a dense matrix: what it writes, what it refuses, its figures and contact sheets."""

import io
import json
import math
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import zarr
from listener import Listener
from PIL import Image
from thresher import results
from thresher.analysis import stored_statistics
from thresher.analysis.encode import encode
from thresher.analysis.options import EncodeOptions, StatsOptions
from thresher.analysis.stats import dense_statistics, stats
from thresher.analysis.stored_statistics import open_statistics
from thresher.store.errors import StoreError
from thresher.store.reader import open_store

QUICK = StatsOptions(figures=False, overwrite=True)


@pytest.fixture
def encoded_run(make_store, make_run):
    run = make_run(make_store(n=300, invalid=(0, 64, 299), unlabelled=(5, 6)).path)
    encode(run.path)
    return run


@pytest.mark.parametrize("split", ["all", "train", "heldout"])
def test_stats_json_states_the_numbers_with_their_split_and_n(encoded_run, dense, split):
    result = stats(encoded_run.path, replace(QUICK, split=split, min_labelled=1))
    document = json.loads((encoded_run.path / "stats.json").read_text())
    assert document == result.summary
    store = open_store(encoded_run.store_path)
    rows = store.rows_of(np.arange(*store.split(split)))
    expected = dense(encoded_run)
    x, f, x_hat = (expected[name][rows] for name in ("x", "f", "x_hat"))
    assert (document["split"], document["n_rows"], document["d_in"], document["d_sae"]) == (split, len(rows), 8, 24)
    assert document["n_invalid_rows"] == 3
    assert document["mse"] == pytest.approx(((x - x_hat) ** 2).mean(), rel=1e-6)
    sst = ((x - x.mean(0)) ** 2).sum()
    assert document["explained_variance"] == pytest.approx(1 - ((x - x_hat) ** 2).sum() / sst, abs=1e-6)
    assert document["l1"] == pytest.approx(f.sum(1).mean(), rel=1e-6)
    l0 = (f > 0).sum(1)
    assert document["l0"] == {
        "mean": pytest.approx(l0.mean()),
        "median": pytest.approx(np.median(l0)),
        "p99": pytest.approx(np.percentile(l0, 99)),
        "max": l0.max(),
    }
    assert document["l0_above_0.1"]["mean"] == pytest.approx((f > 0.1).sum(1).mean())
    assert document["n_dead"] == int((f > 0).any(0).sum() * -1 + 24)
    assert {name: q["n_rows"] for name, q in document["quality"].items()} == {"train": 294, "heldout": 3, "all": 297}
    assert document["store_fingerprint"] == store.fingerprint


def test_stats_zarr_has_the_arrays_of_the_format(encoded_run):
    stats(encoded_run.path, QUICK)
    group = zarr.open_group(str(encoded_run.path / "stats.zarr"), mode="r")
    kinds = {name: (array.dtype.name, array.shape) for name, array in group.arrays()}
    assert kinds == {
        "n_active": ("uint64", (24,)),
        "sum": ("float64", (24,)),
        "max": ("float32", (24,)),
        "mean_top": ("float32", (24,)),
        "label_entropy": ("float32", (24,)),
        "n_pos": ("uint16", (24,)),
        "n_labelled": ("uint16", (24,)),
        "effective_n": ("float32", (24,)),
        "is_uld": ("bool", (24,)),
        "top_row": ("int64", (24, 20)),
        "top_value": ("float32", (24, 20)),
        "top_label": ("int32", (24, 20)),
    }
    assert math.isnan(group["mean_top"][3])
    assert group["n_active"][3] == 0
    assert set(group["top_row"][3].tolist()) == {-1}


def test_every_array_of_stats_zarr_is_described(encoded_run, tmp_path):
    np.save(tmp_path / "e.npy", np.random.default_rng(0).standard_normal((300, 4)))
    stats(encoded_run.path, replace(QUICK, min_labelled=1, embeddings=str(tmp_path / "e.npy")))
    members = zarr.open_group(str(encoded_run.path / "stats.zarr"), mode="r").members(max_depth=None)
    for name in (name for name, member in members if isinstance(member, zarr.Array)):
        group, _, last = name.rpartition("/")
        (line, *_) = [line for line in stored_statistics.__doc__.splitlines() if line.strip().startswith(group or last)]
        lines = [each for each in stored_statistics.__doc__.splitlines() if f"{group}/" in each] if group else [line]
        assert any(last in each for each in lines), name


def test_what_is_printed_has_the_entropy_by_chance_and_l0_without_the_cluster(encoded_run):
    result = stats(encoded_run.path, replace(QUICK, min_labelled=2))
    null = result.summary["details"]["null"]
    printed = results.of_statistics(result)
    assert f"for {null['n_at_least_p']} lower than under every one of 200 random labellings" in printed
    effective_n = np.nanmedian(result.statistics.effective_n[~np.isnan(result.statistics.label_entropy)])
    assert f"of rows that amount to {effective_n:.3g} of equal weight" in printed
    assert "L0 without ULD" not in printed
    l0 = {"mean": 20.0, "median": 19.0, "p99": 35.0, "max": 40}
    row = {"row": 1234, "l0": 6458, "n_uld": 6420}
    with_cluster = replace(result, summary=result.summary | {"l0_without_uld": l0, "max_l0_row_uld": row})
    line = "max 40; row 1,234 has the largest L0, 6,458, of which 6,420 are of the ULD cluster"
    assert line in results.of_statistics(with_cluster)


def test_stored_statistics_read_back_as_they_were(encoded_run):
    result = stats(encoded_run.path, QUICK)
    stored = open_statistics(encoded_run.path)
    assert stored.summary == result.summary
    for name in stored.statistics.__dataclass_fields__:
        if name not in ("workers",):
            np.testing.assert_array_equal(getattr(stored.statistics, name), getattr(result.statistics, name))


def test_a_dense_matrix_gives_the_same_numbers_as_the_run(encoded_run, tmp_path):
    from thresher.analysis.features import open_features

    features = open_features(encoded_run.path)
    indptr, index, value = features.rows(0, 300)
    f = np.zeros((300, 24), np.float32)
    f[np.repeat(np.arange(300), np.diff(indptr)), index] = value
    f[~features.row_numbers("valid", 0, 300)] = np.nan
    zarr.create_array(str(tmp_path / "dense.zarr"), data=f, chunks=(64, 10))
    np.save(tmp_path / "labels.npy", open_store(encoded_run.store_path).labels(0, 300))
    heard = Listener()
    options = replace(QUICK, labels=str(tmp_path / "labels.npy"))
    of_matrix = dense_statistics(tmp_path / "dense.zarr", tmp_path / "out", options, heard)
    of_run = stats(encoded_run.path, QUICK)
    for name in of_run.statistics.__dataclass_fields__:
        if name != "workers":
            np.testing.assert_array_equal(getattr(of_matrix.statistics, name), getattr(of_run.statistics, name), name)
    a, b = (
        dict(zarr.open_group(str(p / "stats.zarr"), mode="r").arrays()) for p in (tmp_path / "out", encoded_run.path)
    )
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name][:], b[name][:], name)
    for name in ("n_rows", "n_invalid_rows", "n_dead", "l0", "l0_above_0.1", "uld"):
        assert of_matrix.summary[name] == of_run.summary[name]
    assert heard.warned == ["3 of 300 rows hold a value that is not finite and were passed over"]


def test_a_dense_matrix_has_no_splits(tmp_path):
    with pytest.raises(ValueError, match="split must be all"):
        dense_statistics(tmp_path / "dense.zarr", tmp_path / "out", StatsOptions(split="train"))


def test_statistics_of_a_run_without_features_are_refused(make_store, make_run):
    run = make_run(make_store().path)
    with pytest.raises(StoreError, match="run `thresher encode` first"):
        stats(run.path, QUICK)


def test_features_of_other_weights_are_refused(encoded_run):
    encoded_run.sae.b_enc += 1
    encoded_run.sae.save(encoded_run.path / "sae.safetensors")
    with pytest.raises(StoreError, match="sae_sha256"):
        stats(encoded_run.path, QUICK)


def test_existing_statistics_are_kept_without_overwrite(encoded_run):
    stats(encoded_run.path, QUICK)
    with pytest.raises(StoreError, match="--overwrite"):
        stats(encoded_run.path, replace(QUICK, overwrite=False))


def test_a_split_that_was_not_encoded_is_refused(make_store, make_run):
    run = make_run(make_store().path)
    encode(run.path, EncodeOptions(split="heldout"))
    with pytest.raises(StoreError, match="no rows of the split 'train'"):
        stats(run.path, replace(QUICK, split="train"))


def test_a_feature_that_the_run_does_not_have_is_refused(encoded_run):
    with pytest.raises(ValueError, match="feature 24 is not one of the 24"):
        stats(encoded_run.path, replace(QUICK, sheet_features=(24,)))


@pytest.mark.parametrize("damage", ["no json", "rubbish", "other format"])
def test_what_is_no_statistics_is_refused(encoded_run, damage):
    stats(encoded_run.path, QUICK)
    path = encoded_run.path / "stats.json"
    if damage == "no json":
        path.unlink()
    else:
        path.write_text("{" if damage == "rubbish" else "{}")
    with pytest.raises(StoreError, match="thresher stats"):
        open_statistics(encoded_run.path)


def _webp(colour: tuple[int, int, int], size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def test_figures_and_contact_sheets_are_pictures(encoded_run, monkeypatch):
    monkeypatch.setattr(
        "thresher.store.reader.ActivationStore.thumbnails",
        lambda _, rows: [_webp((row % 256, 0, 0), (128, 96)) for row in rows],
    )
    (encoded_run.path / "metrics.jsonl").write_text(
        "".join(
            json.dumps(m) + "\n"
            for m in (
                {"step": 1, "rows": 64, "split": "train", "normalized_mse": 0.1, "explained_variance": -3.0, "l0": 9.0},
                {
                    "step": 2,
                    "rows": 128,
                    "split": "train",
                    "normalized_mse": 0.05,
                    "explained_variance": 0.3,
                    "l0": 8.0,
                },
                {"step": 2, "rows": 128, "split": "heldout", "normalized_mse": 0.06, "l0": {"mean": 8.1}},
            )
        )
    )
    result = stats(encoded_run.path, StatsOptions(sheet_features=(3, 7), min_labelled=1))
    assert [p.name for p in result.figures] == [
        "scatter.png",
        "density.png",
        "label_entropy.png",
        "l0.png",
        "training.png",
    ]
    assert [p.name for p in result.sheets] == ["sheet_chosen.png", "sheet_random.png", "sheet_selective.png"]
    for path in (*result.figures, *result.sheets):
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 300


def test_the_first_picture_of_a_feature_is_its_largest_row(encoded_run, monkeypatch):
    colours = {row: ((37 * row) % 256, (11 * row) % 256, 200) for row in range(300)}
    monkeypatch.setattr(
        "thresher.store.reader.ActivationStore.thumbnails",
        lambda _, rows: [_webp(colours[row], (128, 128)) for row in rows],
    )
    result = stats(encoded_run.path, replace(QUICK, figures=True, sheet_features=(7,)))
    with Image.open(result.sheets[0]) as sheet:
        for i, row in enumerate(result.statistics.top_row[7, :16].tolist()):
            x, y = 16 + i * 102 + 48, 16 + 26 + 26 + 48
            assert sheet.getpixel((x, y)) == colours[row]


def test_no_pictures_are_shown_from_a_store_that_took_the_place_of_the_encoded_one(make_store, make_run):
    made = make_store()
    run = make_run(made.path)
    encode(run.path)
    shutil.rmtree(made.path)
    make_store(seed=3)
    heard = Listener()
    assert stats(run.path, StatsOptions(), heard).sheets == []
    assert "is not the store that was encoded" in heard.warned[0]


def test_a_class_whose_name_holds_line_breaks_and_half_a_character_is_on_the_sheets(make_store, make_run, monkeypatch):
    monkeypatch.setattr("thresher.store.reader.ActivationStore.thumbnails", lambda _, rows: [None for _ in rows])
    run = make_run(make_store(label_names=["a\nb\tc", os.fsdecode(b"\xff"), "日本", "\u2028", " "]).path)
    encode(run.path)
    assert len(stats(run.path, StatsOptions(sheet_features=(3, 7), min_labelled=1)).sheets) == 3


def test_a_store_without_thumbnails_gives_figures_and_a_warning(make_store, make_run):
    run = make_run(make_store(thumbnails=False).path)
    encode(run.path)
    heard = Listener()
    result = stats(run.path, StatsOptions(), heard)
    assert len(result.figures) == 4
    assert result.sheets == []
    assert "without thumbnails" in heard.warned[0]


def test_the_sheets_show_alive_features_outside_the_uld_cluster():
    from thresher.analysis.clusters import UldSplit
    from thresher.analysis.sheets import random_features, selective_features
    from thresher.analysis.statistics import FeatureStatistics
    from thresher.analysis.totals import FeatureTotals

    totals = FeatureTotals.zero(6, 1)
    totals.n_active[:] = [3, 3, 0, 3, 3, 3]
    totals.top_value[:, 0] = [1.0, 2.0, 0.0, 3.0, 4.0, 5.0]
    totals.top_row[:, 0] = [10, 11, -1, 12, 13, 13]
    totals.top_label[:, 0] = 0
    statistics = FeatureStatistics.of_totals(totals, min_labelled=1)
    is_uld = np.array([True, False, False, False, False, False])
    split = UldSplit(threshold=0.1, reason=None, is_uld=is_uld, mixture=None, bic_gain=None, dip=None)
    assert random_features(statistics, split, 9, seed=0).tolist() == [1, 3, 4, 5]
    assert random_features(statistics, split, 2, seed=4).tolist() == random_features(statistics, split, 2, 4).tolist()
    # all of entropy 0: the largest first, one feature a largest row
    assert selective_features(statistics, split, 9).tolist() == [5, 3, 1]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"min_labelled": 21}, "at most k"),
        ({"workers": 2, "scheduler": "tcp://x"}, "one of the two"),
        ({"split": "test"}, "split must be one of"),
        ({"sheet_features": (-1,)}, "from 0 on"),
    ],
)
def test_options_out_of_range_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        StatsOptions(**kwargs)


@pytest.mark.parametrize("kwargs", [{"rows": 0}, {"block_rows": 0}, {"split": "x"}, {"size_limit_gb": 0.0}])
def test_encode_options_out_of_range_are_refused(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        EncodeOptions(**kwargs)
