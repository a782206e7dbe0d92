"""The chance levels of coherence, against directions that are really drawn."""

import numpy as np
import pytest
import torch
from thresher.analysis.clusters import coherence
from thresher.analysis.coherence_chance import input_variances, isotropic_chance, matched_chance, unit_variances
from thresher.store.reader import open_store
from thresher.train.models import load_sae


def _drawn(n, variances, draws=3000, seed=5):
    """Mean pairwise cosine of n directions, over real draws."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(draws, n, len(variances))) * np.sqrt(variances)
    u = x / np.linalg.norm(x, axis=2, keepdims=True)
    cosines = np.einsum("kid,kjd->kij", u, u)
    i, j = np.triu_indices(n, 1)
    return cosines[:, i, j].mean(axis=1)


@pytest.mark.parametrize("n", [5, 20, 60])
def test_the_isotropic_chance_level_is_that_of_drawn_directions(n):
    drawn, got = _drawn(n, np.ones(24)), isotropic_chance(n, 24)
    assert got.sd == pytest.approx(drawn.std(), rel=0.08)
    assert got.p99 == pytest.approx(np.quantile(drawn, 0.99), rel=0.12)


@pytest.mark.parametrize("n", [5, 20, 60])
def test_directions_shaped_like_the_activations_are_more_alike_by_chance(n):
    variances = 1 / np.arange(1, 25) ** 1.5
    drawn, got = _drawn(n, variances), matched_chance(n, variances)
    assert got.sd == pytest.approx(drawn.std(), rel=0.1)
    assert got.p99 == pytest.approx(np.quantile(drawn, 0.99), rel=0.12)
    assert got.p99 > 1.5 * isotropic_chance(n, 24).p99


def test_the_variances_of_directions_are_those_of_drawn_ones_and_add_up_to_one():
    variances = np.array([9.0, 3.0, 1.0, 0.0])
    x = np.random.default_rng(0).normal(size=(200_000, 4)) * np.sqrt(variances)
    expected = np.square(x / np.linalg.norm(x, axis=1, keepdims=True)).mean(axis=0)
    got = unit_variances(variances)
    np.testing.assert_allclose(got, expected, atol=0.01)
    assert got.sum() == pytest.approx(1)


def test_vectors_that_do_not_vary_are_refused_and_one_direction_has_no_pairs():
    with pytest.raises(ValueError, match="all 0"):
        unit_variances(np.zeros(4))
    assert np.isnan(isotropic_chance(1, 8).sd)


def test_a_planted_cluster_of_one_direction_stands_out_of_both_chance_levels_and_random_ones_do_not():
    rng = np.random.default_rng(1)
    variances = 1 / np.arange(1, 33)
    encoder = rng.normal(size=(400, 32)) * np.sqrt(variances)
    encoder[:50] = rng.normal(size=32) + 0.3 * rng.normal(size=(50, 32))
    everyone = np.ones(400, bool)
    planted = coherence(encoder, np.arange(400) < 50, everyone, variances)
    assert planted.within > 0.8 > 5 * planted.matched_chance_p99 > planted.chance_p99
    rest = coherence(encoder, np.arange(400) >= 50, everyone, variances)
    assert abs(rest.within) < rest.matched_chance_p99
    assert np.isnan(coherence(encoder, everyone, everyone).matched_chance_p99)


@pytest.mark.parametrize("options", [{}, {"order": "source", "invalid": (3, 70)}])
def test_the_variances_of_the_input_are_the_eigenvalues_of_the_covariance_of_the_training_rows(
    make_store, make_run, options
):
    run = make_run(make_store(n=257, d=8, **options).path)
    store = open_store(run.store_path)
    sae = load_sae(run.path)
    activations = store.activations()
    n = store.n_train // 128 * 128  # whole runs of 128
    runs = np.linspace(0, store.n_train - 128, n // 128).astype(int)
    rows = np.concatenate([store.rows_of(np.arange(s, s + 128)) for s in runs])
    x = activations.read(0, store.n_rows)[rows].astype(np.float64)
    z = sae.scale(torch.from_numpy(x)).double().numpy()
    expected = np.linalg.eigvalsh(np.cov(z.T, bias=True))
    np.testing.assert_allclose(input_variances(activations, sae), expected, rtol=1e-4)
