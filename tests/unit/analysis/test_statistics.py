"""Per-feature statistics, against plain float64 loops over dense matrices."""

import math
import os
from collections import defaultdict

import numpy as np
import pytest
import scipy.stats
import zarr
from thresher.analysis.features import open_features
from thresher.analysis.scheduler import open_compute
from thresher.analysis.statistics import FeatureStatistics, dense_totals, sparse_totals
from thresher.progress import Reporter
from thresher.store.errors import StoreError


def _sparse(path, *, k=20, min_labelled=10, task_bytes=64_000_000, split="all", **where) -> FeatureStatistics:
    start, stop = open_features(path).row_range(split)
    with open_compute(**where) as compute:
        totals = sparse_totals(
            str(path), start, stop, split=split, k=k, task_bytes=task_bytes, compute=compute, reporter=Reporter()
        )
    return FeatureStatistics.of_totals(totals, min_labelled=min_labelled)


def _dense(path, *, labels=None, k=20, min_labelled=10, task_bytes=64_000_000, **where) -> FeatureStatistics:
    with open_compute(**where) as compute:
        totals = dense_totals(
            str(path), labels_path=labels, k=k, task_bytes=task_bytes, compute=compute, reporter=Reporter()
        )
    return FeatureStatistics.of_totals(totals, min_labelled=min_labelled)


def _write_matrix(path, f: np.ndarray, *, chunks=(7, 5)) -> str:
    zarr.create_array(str(path), data=f.astype(np.float32), chunks=chunks)
    return str(path)


def hard_data(n: int, d_sae: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Activations (n, d_sae) with ties, rare features, one that never fires, invalid rows; labels with -1."""
    rng = np.random.default_rng(seed)
    density = 10 ** rng.uniform(-2.5, -0.1, d_sae)
    f = np.where(rng.random((n, d_sae)) < density, rng.choice([0.05, 0.1, 0.25, 1.0, 3.5], (n, d_sae)), 0)
    f[:, ::3] *= rng.random((n, len(f[0, ::3])))
    f = f.astype(np.float32).astype(np.float64)
    f[:, 1] = 0
    f[rng.random(n) < 0.05] = np.nan
    labels = rng.integers(-1, 6, n)
    return f, labels


def reference(f: np.ndarray, labels: np.ndarray, k: int, min_labelled: int) -> dict[str, list]:
    """Each number by its definition, one feature and one row at a time."""
    out: dict[str, list] = defaultdict(list)
    valid = [r for r in range(len(f)) if np.isfinite(f[r]).all()]
    for j in range(f.shape[1]):
        firing = sorted((-f[r, j], r) for r in valid if f[r, j] > 0)
        top = [(-v, r) for v, r in firing[:k]]
        out["n_active"].append(len(firing))
        out["sum"].append(math.fsum(-v for v, _ in firing))
        out["max"].append(top[0][0] if top else 0.0)
        out["mean_top"].append(math.fsum(v for v, _ in top) / len(top) if top else math.nan)
        out["n_pos"].append(len(top))
        out["top_row"].append([r for _, r in top] + [-1] * (k - len(top)))
        out["top_value"].append([v for v, _ in top] + [0.0] * (k - len(top)))
        labelled = [(v, labels[r]) for v, r in top if labels[r] >= 0]
        out["n_labelled"].append(len(labelled))
        by_class: dict[int, float] = defaultdict(float)
        for v, c in labelled:
            by_class[c] += v
        total = math.fsum(by_class.values())
        entropy = -math.fsum(v / total * math.log(v / total) for v in by_class.values())
        out["label_entropy"].append(entropy if len(labelled) >= min_labelled else math.nan)
    out["l0"] = [int((f[r] > 0).sum()) for r in valid]
    out["l0_above"] = [int((f[r].astype(np.float32) > 0.1).sum()) for r in valid]
    return out


def assert_equals_reference(got: FeatureStatistics, f: np.ndarray, labels: np.ndarray) -> None:
    want = reference(f, labels, got.k, got.min_labelled)
    valid = np.isfinite(f).all(axis=1)
    assert got.n_rows == valid.sum()
    assert got.n_labelled_rows == (labels[valid] >= 0).sum()
    for name in ("n_active", "n_pos", "n_labelled", "top_row", "top_value", "max"):
        np.testing.assert_array_equal(getattr(got, name), want[name], err_msg=name)
    np.testing.assert_allclose(got.sum, want["sum"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(got.mean_top, want["mean_top"], rtol=1e-7)  # stored as float32
    np.testing.assert_allclose(got.label_entropy, want["label_entropy"], rtol=2e-7, atol=1e-9)
    np.testing.assert_array_equal(got.top_label, np.where(got.top_row >= 0, labels[got.top_row], -1))
    for got_l0, counts in ((got.l0, want["l0"]), (got.l0_above, want["l0_above"])):
        if counts:
            assert got_l0.mean == pytest.approx(np.mean(counts), rel=1e-12)
            assert got_l0.median == pytest.approx(np.median(counts))
            assert got_l0.p99 == pytest.approx(np.percentile(counts, 99))
            assert got_l0.max == max(counts)
    if want["l0"]:
        assert got.max_l0_row == np.flatnonzero(valid)[np.argmax(want["l0"])]


def assert_identical(a: FeatureStatistics, b: FeatureStatistics) -> None:
    for name in a.__dataclass_fields__:
        if name != "workers":
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.mark.parametrize("k", [1, 20])
def test_every_statistic_equals_the_reference(write_features, tmp_path, k):
    f, labels = hard_data(611, 37)
    path = write_features(f, labels)
    got = _sparse(path, k=k, min_labelled=min(k, 10), task_bytes=3000)
    assert_equals_reference(got, f, labels)
    np.save(tmp_path / "labels.npy", labels)
    dense = _dense(
        _write_matrix(tmp_path / "dense.zarr", f),
        labels=str(tmp_path / "labels.npy"),
        k=k,
        min_labelled=min(k, 10),
        task_bytes=37 * 4 * 100,
    )
    assert_identical(got, dense)


@pytest.mark.parametrize("n", [1, 2, 19])
def test_few_rows_give_the_reference_too(write_features, n):
    f, labels = hard_data(n, 9, seed=n)
    f[0] = np.where(np.arange(9) == 1, 0.0, 0.5)  # at least one valid row
    assert_equals_reference(_sparse(write_features(f, labels), min_labelled=1), f, labels)


def test_a_matrix_without_a_valid_row_gives_undefined_and_not_zero(tmp_path):
    got = _dense(_write_matrix(tmp_path / "dense.zarr", np.full((3, 4), np.nan)))
    assert (got.n_rows, got.n_invalid) == (0, 3)
    assert np.isnan(got.density).all()
    assert np.isnan(got.mean_top).all()
    assert math.isnan(got.l0.mean)


def test_a_split_counts_its_own_rows_only(write_features):
    f, labels = hard_data(400, 12)
    split = np.where(np.random.default_rng(3).random(400) < 0.3, 2, 1)
    path = write_features(f, labels, split=split)
    for name, code in (("train", 1), ("heldout", 2)):
        only = f.copy()
        only[split != code] = np.nan
        got = _sparse(path, split=name, task_bytes=2000)
        assert_equals_reference(got, only, labels)


@pytest.mark.parametrize("task_bytes", [1, 500, 9_999, 10**9])
def test_the_cut_into_tasks_changes_nothing(write_features, task_bytes):
    f, labels = hard_data(150, 20)
    path = write_features(f, labels)
    assert_identical(_sparse(path), _sparse(path, task_bytes=task_bytes))


def test_the_entries_read_at_a_time_change_nothing(write_features, monkeypatch):
    f, labels = hard_data(300, 20)
    path = write_features(f, labels)
    whole = _sparse(path)
    monkeypatch.setattr("thresher.analysis.totals._ENTRIES_AT_ONCE", 17)
    monkeypatch.setattr("thresher.analysis.features._BLOCK_ENTRIES", 50)
    assert_identical(whole, _sparse(path))


def test_two_worker_processes_compute_the_same_as_threads(write_features):
    f, labels = hard_data(2000, 30)
    path = write_features(f, labels)
    processes = _sparse(path, workers=2, task_bytes=4000)
    assert len(processes.workers) == 2
    assert f"{os.getpid()}" not in {worker.split(":")[1] for worker in processes.workers}
    assert_identical(_sparse(path), processes)


def test_one_range_is_counted_by_a_worker_process_too(write_features):
    f, labels = hard_data(50, 12)
    path = write_features(f, labels)
    assert_identical(_sparse(path), _sparse(path, workers=1))


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr("thresher.analysis.scheduler._CONNECT_TIMEOUT_S", 0.5)
    with pytest.raises(ConnectionError, match=r"tcp://127\.0\.0\.1:9"), open_compute(scheduler="tcp://127.0.0.1:9"):
        pass


def test_sums_do_not_depend_on_their_order():
    from thresher.analysis.totals import FeatureTotals, merge_totals

    rng = np.random.default_rng(0)
    value = np.exp(rng.normal(0, 6, 5000)).astype(np.float32)

    def totals(values: np.ndarray) -> FeatureTotals:
        t = FeatureTotals.zero(1, 1)
        n = len(values)
        t.add(0, np.arange(n + 1), np.zeros(n, np.uint32), values, labels=np.full(n, -1), valid=np.ones(n, bool))
        return t

    whole = totals(value).sum[0]
    parts = merge_totals([totals(part) for part in np.array_split(rng.permutation(value), 13)]).sum[0]
    assert whole == parts
    assert whole == pytest.approx(math.fsum(value.astype(np.float64)), rel=1e-12)


def test_label_entropy_is_that_of_scipy_and_of_a_hand_calculation(write_features):
    # 12 rows: class 0 holds 3/4 of the activation, class 1 a quarter; an unlabelled row weighs nothing.
    f = np.array([[1.0]] * 6 + [[0.5]] * 4 + [[9.0]] + [[0.0]])
    labels = np.array([0] * 6 + [1] * 4 + [-1] + [2])
    got = _sparse(write_features(f, labels))
    assert got.n_labelled.tolist() == [10]
    assert got.label_entropy[0] == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), rel=1e-6)
    assert got.label_entropy[0] == pytest.approx(scipy.stats.entropy([6.0, 2.0]), rel=1e-6)


def test_label_entropy_of_one_class_is_exactly_zero_and_of_too_few_rows_undefined(write_features):
    f = np.zeros((40, 3))
    f[:30, 0] = np.random.default_rng(0).random(30) + 5.0 * (np.arange(30) >= 10)
    f[:9, 1] = 1.0
    f[:12, 2] = 1.0
    labels = np.zeros(40)
    labels[:3] = -1
    got = _sparse(write_features(f, labels))
    assert got.label_entropy[0] == 0.0
    assert not np.signbit(got.label_entropy[0])
    assert np.isnan(got.label_entropy[1:]).all()
    assert got.n_labelled.tolist() == [20, 6, 9]


def test_twenty_classes_of_equal_weight_reach_the_ceiling(write_features):
    got = _sparse(write_features(np.ones((20, 1)), np.arange(20)))
    assert got.label_entropy[0] == pytest.approx(math.log(20), rel=1e-6)


def test_negative_and_infinite_values_of_a_dense_matrix(tmp_path):
    f = np.array([[1.0, -2.0], [np.inf, 1.0], [0.0, 3.0]])
    got = _dense(_write_matrix(tmp_path / "dense.zarr", f), min_labelled=1)
    assert got.n_active.tolist() == [1, 1]
    assert (got.n_rows, got.n_invalid) == (2, 1)
    assert got.top_row[:, 0].tolist() == [0, 2]


@pytest.mark.parametrize("bad", ["shape", "type", "rubbish"])
def test_labels_that_do_not_fit_a_dense_matrix_are_refused(tmp_path, bad):
    path = _write_matrix(tmp_path / "dense.zarr", np.ones((3, 4)))
    labels = tmp_path / "labels.npy"
    if bad == "rubbish":
        labels.write_bytes(b"no labels")
    else:
        np.save(labels, np.zeros(4, int) if bad == "shape" else np.zeros(3))
    with pytest.raises(StoreError, match=r"labels\.npy"):
        _dense(path, labels=str(labels))


def test_what_is_no_matrix_is_refused(tmp_path):
    with pytest.raises(StoreError, match="not a zarr array"):
        _dense(tmp_path / "none.zarr")
    zarr.create_array(str(tmp_path / "long.zarr"), data=np.ones(3), chunks=(3,))
    with pytest.raises(StoreError, match="shape"):
        _dense(tmp_path / "long.zarr")
