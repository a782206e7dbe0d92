"""Samples, labels, chance levels, partners, neighbours and monosemanticity, against plain loops in float64."""

import gc
import math
import os
import signal
import tracemalloc
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import zarr
from thresher.analysis import activation_bins, cofiring, firings, monosemanticity, split_entries
from thresher.analysis.clusters import UldSplit
from thresher.analysis.details import DetailsOf, write_details
from thresher.analysis.features import open_features
from thresher.analysis.nearest import nearest_features
from thresher.analysis.options import StatsOptions
from thresher.analysis.samples import SAMPLE_GROUPS, random_entries
from thresher.analysis.scheduler import open_compute
from thresher.analysis.statistics import FeatureStatistics, sparse_totals
from thresher.analysis.stored_details import StoredDetails
from thresher.progress import Reporter
from thresher.store.errors import StoreError

if TYPE_CHECKING:
    from distributed import LocalCluster


def hard_data(n: int = 500, d_sae: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Activations with ties, a dead feature (1), one of one firing (2), one that always fires (4), invalid rows."""
    rng = np.random.default_rng(seed)
    density = 10 ** rng.uniform(-2, -0.1, d_sae)
    f = np.where(rng.random((n, d_sae)) < density, rng.choice([0.05, 0.1, 0.25, 1.0, 3.5], (n, d_sae)), 0)
    f[:, ::3] *= 0.5 + rng.random((n, len(f[0, ::3])))
    f[:, 1], f[:, 2], f[:, 4] = 0, 0, 0.5
    f[n // 2, 2] = 2.0
    f = f.astype(np.float32).astype(np.float64)
    f[rng.random(n) < 0.05] = np.nan
    f[n // 2] = np.where(np.isnan(f[n // 2]), np.where(np.arange(d_sae) == 1, 0, 0.5), f[n // 2])
    return f, rng.integers(-1, 6, n)


def uld_split(is_uld: np.ndarray, threshold: float | None) -> UldSplit:
    reason = "one mode" if threshold is None else None
    return UldSplit(threshold=threshold, reason=reason, is_uld=is_uld, mixture=None, bic_gain=None, dip=None)


def details_of(path, options: StatsOptions, tmp_path, *, uld=None, name="stats.zarr", reporter=None, **where):
    """The details of stored features: the record and the reader."""
    features, reporter = open_features(path), reporter or Reporter()
    with open_compute(**where) as compute:
        start, stop = features.row_range(options.split)
        totals = sparse_totals(
            str(path),
            start,
            stop,
            split=options.split,
            k=options.k,
            task_bytes=options.task_bytes,
            compute=compute,
            reporter=reporter,
        )
        statistics = FeatureStatistics.of_totals(totals, min_labelled=options.min_labelled)
        none = uld_split(np.zeros(statistics.d_sae, bool), None)
        group = zarr.open_group(str(tmp_path / name), mode="w", zarr_format=3)
        record = write_details(
            group,
            DetailsOf(statistics=statistics, uld=uld or none, features=features),
            options,
            compute=compute,
            reporter=reporter,
        )
        group.create_array("n_active", data=statistics.n_active)
    return record, StoredDetails(group, tmp_path, record["absent"]), statistics


def firing_rows(f: np.ndarray, j: int) -> list[int]:
    """Rows on which a feature fires, by falling value, the lower row first among equals."""
    return [r for _, r in sorted((-f[r, j], r) for r in range(len(f)) if f[r, j] > 0)]


@pytest.mark.parametrize("split", ["all", "train", "heldout"])
def test_samples_stand_around_their_quantiles_and_labels_count_every_firing_row(write_features, tmp_path, split):
    f, labels = hard_data()
    of = np.where(np.random.default_rng(5).random(len(f)) < 0.4, 2, 1)
    path = write_features(f, labels, split=of)
    options = StatsOptions(samples=5, split=split, min_labelled=4, task_bytes=4000)
    _, stored, _ = details_of(path, options, tmp_path)
    f = np.where(np.isnan(f) | ((of != {"train": 1, "heldout": 2}.get(split, 0)) & (split != "all"))[:, None], 0, f)
    for j in range(f.shape[1]):
        rows = firing_rows(f, j)
        samples = stored.samples(j)
        assert tuple(samples) == SAMPLE_GROUPS
        for name, q in (("top", 1.0), ("q75", 0.75), ("q50", 0.5), ("q25", 0.25)):
            # the run of 5 whose middle is nearest to the quantile, within what fires
            starts = range(max(1, len(rows) - 4))
            start = min(starts, key=lambda s, q=q: (abs(s + 2 - (1 - q) * (len(rows) - 1)), -s))
            assert samples[name].row.tolist() == rows[start : start + 5], (j, name)
        assert set(samples["random"].row) <= set(rows)
        assert len(set(samples["random"].row)) == min(5, len(rows))
        for sample in samples.values():
            np.testing.assert_array_equal(sample.value, f[sample.row, j].astype(np.float32))
            np.testing.assert_array_equal(sample.label, labels[sample.row])
            assert (np.diff(sample.value) <= 0).all()
        weights: dict[int, list[float]] = defaultdict(list)
        for r in rows:
            if labels[r] >= 0:
                weights[int(labels[r])].append(f[r, j])
        found = stored.labels(j)
        assert found.label.tolist() == sorted(weights)
        assert found.count.tolist() == [len(weights[c]) for c in sorted(weights)]
        np.testing.assert_allclose(found.sum, [math.fsum(weights[c]) for c in sorted(weights)], rtol=1e-12)
        every = [v for values in weights.values() for v in values]
        assert stored.array("labels/n_labelled")[j] == len(every)
        entropy = stored.array("labels/entropy")[j]
        if len(every) < 4:
            assert np.isnan(entropy)
        else:
            assert entropy == pytest.approx(scipy.stats.entropy([sum(v) for v in weights.values()]), rel=1e-6, abs=1e-7)
        if every:
            effective = math.fsum(every) ** 2 / math.fsum(v * v for v in every)
            assert stored.array("labels/effective_n")[j] == pytest.approx(effective, rel=1e-6)
    assert np.isnan(stored.array("labels/effective_n")[1])


def test_features_with_too_many_firing_rows_to_hold_have_the_same_details(write_features, tmp_path, monkeypatch):
    f, labels = hard_data(1500, 5)
    f[:, 3] = np.where(np.isnan(f[:, 3]), np.nan, np.exp(np.random.default_rng(8).normal(0, 1, 1500)))
    path = write_features(f, labels, split=np.arange(1500) % 3 // 2 + 1)
    np.save(tmp_path / "e.npy", np.random.default_rng(2).standard_normal((1500, 4)).astype(np.float32))
    for split in ("all", "train"):
        options = StatsOptions(task_bytes=4000, split=split, embeddings=str(tmp_path / "e.npy"), cofiring=0)
        _, whole, _ = details_of(path, options, tmp_path, name=f"whole-{split}")
        with monkeypatch.context() as patch:
            patch.setattr(split_entries, "MOST_HELD", 100)
            patch.setattr("thresher.analysis.features._BLOCK_ENTRIES", 300)
            _, pieces, _ = details_of(path, options, tmp_path, name=f"pieces-{split}")
        assert whole.array("labels/n_labelled")[3] > 700
        for name, array in whole._group.members(max_depth=None):
            if isinstance(array, zarr.Array):
                np.testing.assert_array_equal(array[:], pieces.array(name)[:], err_msg=name)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_few_rows_have_details_too(write_features, tmp_path, n):
    f, labels = np.zeros((n, 3)), np.zeros(n, int)
    f[:, 0] = 1.0
    _, stored, _ = details_of(write_features(f, labels), StatsOptions(k=5, min_labelled=1), tmp_path)
    assert stored.samples(0)["q50"].row.tolist() == list(range(n))
    assert stored.samples(1)["random"].row.tolist() == []
    assert stored.labels(0).count.tolist() == [n]
    assert stored.partners(0).feature.tolist() == []


def test_nothing_depends_on_the_cut_into_tasks_nor_on_how_much_is_read_at_a_time(write_features, tmp_path, monkeypatch):
    f, labels = hard_data()
    embeddings = np.random.default_rng(2).standard_normal((len(f), 6)).astype(np.float32)
    np.save(tmp_path / "e.npy", embeddings)
    path = write_features(f, labels, split=np.arange(len(f)) % 2 + 1)
    options = StatsOptions(embeddings=str(tmp_path / "e.npy"), split="train")
    _, whole, _ = details_of(path, options, tmp_path, name="whole")
    monkeypatch.setattr(cofiring, "_PAIRS_AT_ONCE", 50)
    monkeypatch.setattr(cofiring, "_TASK_PAIRS", 1000)
    monkeypatch.setattr(firings, "_MOST_FEATURES", 7)
    monkeypatch.setattr(split_entries, "_ROWS_AT_ONCE", 37)
    monkeypatch.setattr(monosemanticity, "_WINDOW_BYTES", 8 * 6 * 21)
    monkeypatch.setattr(monosemanticity, "_PRODUCTS_BYTES", 8 * 6 * 5)
    small = StatsOptions(embeddings=options.embeddings, split="train", task_bytes=3000)
    _, cut, _ = details_of(path, small, tmp_path, name="cut")
    arrays = [name for name, array in whole._group.members(max_depth=None) if isinstance(array, zarr.Array)]
    assert len(arrays) > 15
    for name in arrays:
        np.testing.assert_array_equal(whole.array(name)[:], cut.array(name)[:], err_msg=name)


@contextmanager
def two_processes(folder) -> Iterator["LocalCluster"]:
    """A cluster of two worker processes, which are started again when they die."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address="127.0.0.1:0",
        local_directory=str(folder),
    ) as cluster:
        yield cluster


def assert_same_arrays(a: StoredDetails, b: StoredDetails) -> None:
    names = [name for name, array in a._group.members(max_depth=None) if isinstance(array, zarr.Array)]
    assert len(names) > 15
    for name in names:
        np.testing.assert_array_equal(a.array(name)[:], b.array(name)[:], err_msg=name)


def test_two_processes_and_a_joined_cluster_give_the_details_of_threads(write_features, tmp_path):
    f, labels = hard_data(2000)
    path = write_features(f, labels)
    options = StatsOptions(task_bytes=4000)
    _, threads, _ = details_of(path, options, tmp_path, name="threads")
    with two_processes(tmp_path) as cluster:
        _, joined, statistics = details_of(path, options, tmp_path, name="joined", scheduler=cluster.scheduler_address)
    assert len(statistics.workers) == 2  # the rows were counted by both of the cluster's processes
    assert f":{os.getpid()}" not in "".join(statistics.workers)
    assert_same_arrays(threads, joined)


class Killer(Reporter):
    """Kills a worker process when the n-th unit of a piece of work is done."""

    def __init__(self, cluster: "LocalCluster", work: str, at: int):
        self._cluster, self._work, self._at, self.killed = cluster, work, at, []

    @contextmanager
    def task(self, name, total, unit, *, done=0):
        self._now, self._done = name, 0
        yield self

    def advance(self, n=1, **fields):
        self._done += n
        if self._now == self._work and self._done >= self._at and not self.killed:
            (nanny, *_) = self._cluster.workers.values()
            self.killed.append(nanny.pid)
            os.kill(nanny.pid, signal.SIGKILL)


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("work", "at"), [("counting", 20), ("firing rows", 10), ("co-firing", 5)])
def test_a_worker_killed_midway_changes_no_number(write_features, tmp_path, monkeypatch, work, at):
    monkeypatch.setattr(cofiring, "_TASK_PAIRS", 20_000)
    f, labels = hard_data(20_000)
    path = write_features(f, labels)
    options = StatsOptions(task_bytes=8000)
    _, threads, expected = details_of(path, options, tmp_path, name="threads")
    with two_processes(tmp_path) as cluster:
        killer = Killer(cluster, work, at)
        _, stored, statistics = details_of(
            path, options, tmp_path, name="killed", reporter=killer, scheduler=cluster.scheduler_address
        )
    assert len(killer.killed) == 1
    assert_same_arrays(threads, stored)
    for name in FeatureStatistics.__dataclass_fields__:
        if name != "workers":
            np.testing.assert_array_equal(getattr(statistics, name), getattr(expected, name), err_msg=name)


@pytest.mark.faults
def test_the_drivers_memory_is_flat_in_the_rows_and_both_processes_count(write_features, tmp_path, monkeypatch):
    monkeypatch.setattr(cofiring, "ENTRIES_KEPT", 10_000)
    options, peaks = StatsOptions(task_bytes=20_000), []
    with two_processes(tmp_path) as cluster:
        for n in (2_000, 2_000, 20_000):  # the first for imports and caches
            f, labels = hard_data(n)
            path = write_features(f, labels, name=f"{n}.zarr")
            del f
            gc.collect()
            tracemalloc.start()
            where = {"scheduler": cluster.scheduler_address}
            _, _, statistics = details_of(path, options, tmp_path, name="memory", **where)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert len(statistics.workers) == 2
    # what grows is a graph node a range and the futures of ranges, some kilobytes each; ten times the entries are
    # 2 MB more
    assert peaks[2] < 1.8 * peaks[1]


def twelve_firings_each(n: int, first: int = 0) -> split_entries.SplitEntries:
    """Features from `first` on that fire on rows 0 to 11, each less than on the one before."""
    value = np.tile(np.linspace(3, 1, 12, dtype=np.float32), n)
    return split_entries.SplitEntries(first, 12 * np.arange(n + 1), np.tile(np.arange(12), n), value)


def test_random_samples_are_even_over_a_features_rows_and_differ_by_seed():
    ranks = random_entries(twelve_firings_each(4000), 5, 3) - 12 * np.arange(4000)[:, None]
    assert (np.diff(ranks, axis=1) > 0).all()
    counts = np.bincount(ranks.ravel(), minlength=12)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    pairs = np.array([(a == 0) & (b == 11) for a, b in zip(ranks[:, 0], ranks[:, -1], strict=True)]).mean()
    assert pairs == pytest.approx(5 * 4 / (12 * 11), abs=0.03)
    later = random_entries(twelve_firings_each(3900, 100), 5, 3) - 12 * np.arange(3900)[:, None]
    np.testing.assert_array_equal(ranks[100:], later)
    assert (ranks != random_entries(twelve_firings_each(4000), 5, 4) - 12 * np.arange(4000)[:, None]).any()


def test_histograms_and_l0_count_every_value(write_features, tmp_path):
    f, labels = hard_data()
    _, _, statistics = details_of(write_features(f, labels), StatsOptions(task_bytes=3000), tmp_path)
    valid = np.isfinite(f).all(axis=1)
    for j in range(f.shape[1]):
        fires = f[valid, j][f[valid, j] > 0]
        np.testing.assert_array_equal(
            statistics.histogram[j], np.histogram(fires, bins=activation_bins.BIN_EDGES.astype(np.float64))[0]
        )
    for threshold, counts in zip((0.1, 0.5, 1.0), statistics.l0_counts_above, strict=True):
        l0 = (f[valid].astype(np.float32) > np.float32(threshold)).sum(axis=1)
        np.testing.assert_array_equal(np.trim_zeros(counts, "b"), np.bincount(l0))
    ids, rows = np.unique(labels[valid & (labels >= 0)], return_counts=True)
    np.testing.assert_array_equal(statistics.label_ids, ids)
    np.testing.assert_array_equal(statistics.label_rows, rows)


def test_l0_is_given_without_the_cluster_and_the_largest_says_how_much_of_it_is_of_it(write_features, tmp_path):
    f, labels = hard_data()
    is_uld = np.arange(30) % 3 == 0
    uld = uld_split(is_uld, 0.1)
    record, stored, statistics = details_of(write_features(f, labels), StatsOptions(task_bytes=900), tmp_path, uld=uld)
    valid = np.isfinite(f).all(axis=1)
    l0 = (f[valid][:, ~is_uld] > 0).sum(axis=1)
    np.testing.assert_array_equal(stored.array("l0/without_uld")[:], np.bincount(l0))
    assert record["l0_without_uld"]["mean"] == pytest.approx(l0.mean())
    row = f[statistics.max_l0_row]
    assert record["max_l0_row_uld"] == {
        "row": statistics.max_l0_row,
        "l0": int((row > 0).sum()),
        "n_uld": int((row[is_uld] > 0).sum()),
        "share_of_firings": pytest.approx((row[is_uld] > 0).sum() / (row > 0).sum()),
        "share_of_mass": pytest.approx(row[is_uld].sum() / row.sum()),
    }


@pytest.mark.parametrize("many", [True, False])
def test_partners_are_the_best_by_jaccard_with_their_pmi_and_support(write_features, tmp_path, monkeypatch, many):
    f, labels = hard_data(400, 40)
    if not many:  # wide and sparse: pairs are sorted, not counted in arrays
        wide = np.zeros((400, 4000))
        wide[:, ::100] = np.where(np.random.default_rng(1).random((400, 40)) < 0.1, np.nan_to_num(f), 0)
        f = wide
    _, stored, _ = details_of(write_features(f, labels), StatsOptions(cofiring=6), tmp_path)
    fires = np.nan_to_num(f) > 0
    n = int(np.isfinite(f).all(axis=1).sum())
    both = (fires.T.astype(float) @ fires.astype(float)).astype(int)
    for a in np.flatnonzero(fires.any(axis=0)):
        scored = []
        for b in np.flatnonzero(both[a] >= 2).tolist():
            if b != a:
                jaccard = both[a, b] / (both[a, a] + both[b, b] - both[a, b])
                scored.append((-jaccard, b, math.log(both[a, b] * n / (both[a, a] * both[b, b]))))
        best = sorted(scored)[:6]
        found = stored.partners(int(a))
        assert found.feature.tolist() == [b for _, b, _ in best]
        np.testing.assert_allclose(found.jaccard, [-j for j, _, _ in best], rtol=1e-6)
        np.testing.assert_allclose(found.pmi, [p for *_, p in best], rtol=1e-5, atol=1e-6)
        assert found.n_both.tolist() == [both[a, b] for _, b, _ in best]
        for b, jaccard in list(zip(found.feature, found.jaccard, strict=True))[:2]:
            assert jaccard == pytest.approx(sklearn.metrics.jaccard_score(fires[:, a], fires[:, b]))


def test_co_firing_on_some_rows_takes_them_evenly_and_says_how_many(write_features, tmp_path):
    f, labels = hard_data(400, 40)
    f = np.nan_to_num(f)
    path = write_features(f, labels)
    record, stored, _ = details_of(path, StatsOptions(cofiring_rows=100), tmp_path)
    assert record["details"]["cofiring"]["n_rows"] == 100
    runs = cofiring.choose_rows(open_features(path), 0, 400, "all", 100).runs
    used = np.concatenate([np.arange(a, b) for a, b in runs])
    assert len(np.unique(used)) == 100
    assert np.diff(used).max() <= 7  # spread over all of the store
    np.testing.assert_array_equal(stored.array("cofiring/n_active")[:], (f[used] > 0).sum(axis=0))


def test_nearest_features_are_those_of_sklearn_and_a_direction_of_zeros_is_none():
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((60, 7)).astype(np.float32)
    directions[5] = 0
    directions[8] = 3 * directions[7]
    feature, cosine = nearest_features(torch.from_numpy(directions), 4)
    want = sklearn.metrics.pairwise.cosine_similarity(directions.astype(np.float64))
    np.fill_diagonal(want, -9)
    want[:, 5] = -9
    for j in range(60):
        if j == 5:
            assert feature[j].tolist() == [-1] * 4
            assert np.isnan(cosine[j]).all()
            continue
        np.testing.assert_allclose(cosine[j], np.sort(want[j])[::-1][:4], atol=1e-6)
        np.testing.assert_allclose(want[j, feature[j]], cosine[j], atol=1e-6)
    assert feature[8, 0] == 7
    few, _ = nearest_features(torch.from_numpy(directions[:3]), 4)
    assert (few >= 0).sum(axis=1).tolist() == [2, 2, 2]


def test_nearest_features_do_not_depend_on_the_block(monkeypatch):
    directions = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    whole = nearest_features(directions, 5)
    monkeypatch.setattr("thresher.analysis.nearest._COSINES_AT_ONCE", 50 * 7)
    blocks = nearest_features(directions, 5)
    np.testing.assert_array_equal(whole[0], blocks[0])
    np.testing.assert_allclose(whole[1], blocks[1], atol=1e-6)


@pytest.mark.parametrize("form", ["npy", "zarr"])
def test_monosemanticity_is_the_weighted_mean_cosine_over_pairs(write_features, tmp_path, form):
    f, labels = hard_data(200, 12)
    rng = np.random.default_rng(1)
    embeddings = rng.standard_normal((200, 5)).astype(np.float32) + 0.5
    embeddings[3], embeddings[9] = 0, np.nan  # rows without an embedding
    path = tmp_path / f"e.{form}"
    if form == "npy":
        np.save(path, embeddings)
    else:
        zarr.create_array(str(path), data=embeddings, chunks=(64, 5))
    options = StatsOptions(embeddings=str(path))
    record, stored, _ = details_of(write_features(f, labels), options, tmp_path)
    has_one = np.isfinite(embeddings).all(1) & (np.linalg.norm(embeddings, axis=1) > 0)
    e = embeddings.astype(np.float64)
    unit = e / np.where(has_one, np.linalg.norm(e, axis=1), 1)[:, None]
    scores = stored.array("monosemanticity")[:]
    for j in range(12):
        rows = [r for r in firing_rows(np.nan_to_num(f), j) if has_one[r]]
        over = [(f[a, j] * f[b, j], unit[a] @ unit[b]) for a in rows for b in rows if a < b]
        want = math.fsum(w * c for w, c in over) / math.fsum(w for w, _ in over) if over else math.nan
        np.testing.assert_allclose(scores[j], want, rtol=1e-5, atol=1e-6)
    assert record["details"]["monosemanticity"]["n_undefined"] == 2


@pytest.mark.parametrize("bad", ["rows", "integers", "rubbish", "none"])
def test_embeddings_that_do_not_fit_are_named(write_features, tmp_path, bad):
    f, labels = hard_data(50, 8)
    path = tmp_path / "e.npy"
    if bad == "rubbish":
        path.write_bytes(b"no embeddings")
    elif bad != "none":
        np.save(path, np.ones((49 if bad == "rows" else 50, 3), int if bad == "integers" else float))
    with pytest.raises(StoreError, match=r"e\.npy"):
        details_of(write_features(f, labels), StatsOptions(embeddings=str(path)), tmp_path)


def test_what_was_left_out_says_why(write_features, tmp_path):
    f, _ = hard_data(50, 8)
    options = StatsOptions(samples=0, cofiring=0)
    record, stored, _ = details_of(write_features(f, np.full(50, -1)), options, tmp_path)
    assert record["absent"]["null"] == "no row has a label"
    assert set(record["absent"]) == {
        "null", "nearest", "samples", "labels", "cofiring", "monosemanticity", "l0_without_uld",
    }  # fmt: skip
    assert not stored.has("samples")
    with pytest.raises(StoreError, match="holds no samples/row in its statistics: left out by --samples 0"):
        stored.samples(0)
    with pytest.raises(StoreError, match="give --embeddings FILE"):
        stored.array("monosemanticity")


def test_numbers_at_a_smaller_k_are_those_of_statistics_with_that_k(write_features, tmp_path):
    f, labels = hard_data()
    path = write_features(f, labels)
    _, _, twenty = details_of(path, StatsOptions(k=20), tmp_path)
    for k in (1, 7):
        _, _, small = details_of(path, StatsOptions(k=k, min_labelled=min(k, 10)), tmp_path)
        np.testing.assert_allclose(twenty.mean_top_at(k), small.mean_top, rtol=1e-6)
        for a, b in zip(twenty.label_entropy_at(k), (small.label_entropy, small.n_labelled), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="k must be from 1 to 20"):
        twenty.mean_top_at(21)
    defined = ~np.isnan(twenty.label_entropy)
    np.testing.assert_allclose(twenty.label_entropy_bits[defined], twenty.label_entropy[defined] / np.log(2), rtol=1e-6)
    assert np.nanmax(twenty.label_entropy_share) <= 1
    for j in np.flatnonzero(defined):
        want = twenty.label_entropy[j] / math.log(twenty.n_labelled[j])
        assert twenty.label_entropy_share[j] == pytest.approx(want, rel=1e-6)


def test_ranges_of_features_hold_all_features_once(write_features):
    f, labels = hard_data()
    features = open_features(write_features(f, labels))
    for task_bytes, most in ((1, 100), (3000, 4), (10**9, 100)):
        ranges = features.feature_ranges(task_bytes, most)
        assert [a for a, _ in ranges] + [30] == [0] + [b for _, b in ranges]
        assert all(a < b for a, b in ranges)
    assert all(b - a <= 4 for a, b in features.feature_ranges(10**9, 4))
    indptr, row, value = features.feature_range(4, 9)
    for j, (a, b) in enumerate(pairwise(indptr)):
        np.testing.assert_array_equal(row[a:b], features.feature(4 + j)[0])
        np.testing.assert_array_equal(value[a:b], features.feature(4 + j)[1])
