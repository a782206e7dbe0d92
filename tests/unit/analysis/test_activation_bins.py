"""The bins of activation histograms, against numpy."""

import numpy as np
from thresher.analysis import activation_bins


def test_bins_hold_what_a_search_of_the_edges_says():
    rng = np.random.default_rng(0)
    edges = activation_bins.BIN_EDGES
    inner = edges[1:-1]
    value = np.concatenate(
        (10 ** rng.uniform(-10, 6, 50_000), inner, np.nextafter(inner, np.float32(0)), [1e-45, 3.4e38])
    ).astype(np.float32)
    np.testing.assert_array_equal(activation_bins.bins_of(value), np.searchsorted(edges, value, side="right") - 1)


def test_quantiles_from_bins_are_within_a_bin_of_the_exact_ones():
    rng = np.random.default_rng(1)
    value = np.exp(rng.normal(0, 1, (3, 4000))).astype(np.float32)
    histogram = np.array([np.bincount(activation_bins.bins_of(v), minlength=64) for v in value])
    for q in (0.0, 0.25, 0.5, 0.9, 1.0):
        np.testing.assert_allclose(
            np.log10(activation_bins.quantile_from_bins(histogram, q)),
            np.log10(np.quantile(value, q, axis=1)),
            atol=0.13,
        )
    assert np.isnan(activation_bins.quantile_from_bins(np.zeros((1, 64)), 0.5)[0])
