"""Sums that do not depend on their order, against math.fsum; samples found in passes, against sorting everything."""

import math

import numpy as np
import pytest
from thresher.analysis.activation_bins import BIN_EDGES, N_BINS, bins_of
from thresher.analysis.exact_sums import SumUnits, in_units
from thresher.analysis.sample_search import N_STEPS, SampledRows, SampleSearch
from thresher.analysis.samples import random_entries, random_keys, sample_ranks
from thresher.analysis.split_entries import SplitEntries


@pytest.mark.parametrize("scale", [1e-38, 1e-14, 1.0, 1e30])
def test_sums_in_units_are_exact_to_float64_and_the_same_in_any_order(scale):
    rng = np.random.default_rng(0)
    values = (rng.lognormal(0, 3, 5_000) * scale).astype(np.float32).astype(np.float64)
    units = SumUnits.of_features(np.array([5_000]), np.array([math.fsum(values)]), values.max(keepdims=True))
    for what, unit in ((values, units.of_values), (values * values, units.of_squares)):
        whole = in_units(what, unit)
        assert np.isfinite(whole).all()
        total = whole.sum()
        assert total < 2**53
        assert total * unit[0] == pytest.approx(math.fsum(what), rel=1e-12 if scale >= 1 else 1e-9, abs=0)
        for _ in range(5):
            parts = np.array_split(rng.permutation(whole), rng.integers(2, 40))
            assert sum(part.sum() for part in rng.permutation(np.array([p.sum() for p in parts]))[:, None]) == total


def test_sums_that_were_stored_as_nothing_still_have_a_unit():
    values = np.full(1_000, np.float32(1e-20), np.float64)
    units = SumUnits.of_features(np.array([1_000, 0]), np.zeros(2), np.array([1e-20, 0], np.float32))
    assert in_units(values, units.of_values[0]).sum() * units.of_values[0] == pytest.approx(1e-17, rel=1e-9)


def firings(n_features=40, n_rows=3_000, seed=0):
    """Row, feature, value and label of random firings: some features never fire, some always, many values tie."""
    rng = np.random.default_rng(seed)
    density = np.concatenate(([0.0, 1.0, 2 / n_rows], 10 ** rng.uniform(-3, 0, n_features - 3)))
    row, feature = np.nonzero(rng.random((n_rows, n_features)) < density)
    value = np.where(feature % 2, rng.choice([0.25, 1.0, 1e-5, 9e4], len(row)), rng.lognormal(0, 2, len(row)))
    return row, feature, value.astype(np.float32), rng.integers(-1, 5, len(row)).astype(np.int32)


@pytest.mark.parametrize("m", [1, 5, 40])
def test_samples_found_in_passes_are_those_of_everything_sorted(m):
    row, feature, value, label = firings()
    d_sae = 40
    n_active = np.bincount(feature, minlength=d_sae)
    histogram = np.zeros((d_sae, N_BINS), np.uint32)
    np.add.at(histogram, (feature, bins_of(value)), 1)
    search, passed = SampleSearch.of_histogram(n_active, histogram, m, 7), []
    for _ in range(14):
        passed.append(search.n_passed)
        kept = []
        for some in np.array_split(np.random.default_rng(1).permutation(len(row)), 5):
            sampled = SampledRows(search)
            for piece in np.array_split(some, 3):
                sampled.add(row[piece], feature[piece], value[piece], label[piece])
            kept.append(sampled.settle())
        assert sum(len(part["slot"]) for part in kept) <= 5 * (search.n_passed + 5 * m * d_sae)
        found_row, found_value, found_label = SampledRows(search, kept).samples()
        for j in range(d_sae):
            of = np.flatnonzero(feature == j)
            falling = of[np.lexsort((row[of], -value[of].astype(np.float64)))]
            for group, ranks in enumerate(sample_ranks(n_active, m)[j]):
                want = falling[ranks[ranks >= 0]]
                assert found_row[j, group].tolist() == row[want].tolist() + [-1] * (m - len(want))
                assert found_value[j, group, : len(want)].tolist() == value[want].tolist()
                assert found_label[j, group, : len(want)].tolist() == label[want].tolist()
            drawn = of[np.argsort(random_keys(feature[of], row[of], 7))[:m]]
            assert set(found_row[j, 4][found_row[j, 4] >= 0]) == set(row[drawn])
            assert (np.diff(found_value[j, 4]) <= 0).all()
        counts = search.zero_steps()
        search.count_steps(counts, row, feature, value)
        search = search.narrowed(counts)
    assert passed == sorted(passed, reverse=True)
    assert passed[0] > 1_000
    assert passed[-1] == 0


def test_a_bin_edge_and_the_values_beside_it_fall_where_the_search_looks():
    edges = BIN_EDGES[1:-1]
    value = np.concatenate((edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(np.inf))))
    row = np.arange(len(value))
    histogram = np.bincount(bins_of(value), minlength=N_BINS)[None].astype(np.uint32)
    search = SampleSearch.of_histogram(np.array([len(value)]), histogram, 4, 0)
    sampled = SampledRows(search)
    sampled.add(row, np.zeros(len(value), np.uint32), value, np.zeros(len(value), np.int32))
    falling = row[np.lexsort((row, -value))]
    for group, ranks in enumerate(sample_ranks(np.array([len(value)]), 4)[0]):
        assert sampled.samples()[0][0, group].tolist() == falling[ranks].tolist()
    assert N_STEPS == 64


@pytest.mark.parametrize("m", [1, 8, 300])
def test_random_samples_are_the_firings_of_smallest_keys_whatever_is_sorted(m):
    row, feature, value, _ = firings(seed=3)
    order = np.lexsort((row, feature))
    indptr = np.concatenate(([0], np.cumsum(np.bincount(feature, minlength=40))))
    entries = SplitEntries(100, indptr, row[order], value[order])
    found = random_entries(entries, m, 2)
    for j in range(40):
        at = np.arange(indptr[j], indptr[j + 1])
        key = random_keys(np.full(len(at), 100 + j), entries.row[at], 2)
        want = at[np.argsort(key)[:m]]
        chosen = found[j][found[j] >= 0]
        assert sorted(chosen) == sorted(want)
        assert chosen.tolist() == sorted(chosen, key=lambda e: (-entries.value[e], entries.row[e]))
