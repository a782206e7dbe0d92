"""The ULD split on planted and on single clusters, and the coherence of encoder vectors."""

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture
from thresher.analysis.clusters import coherence, find_uld_cluster, summarise_uld
from thresher.analysis.mixture import fit_mixture

LOW, HIGH = -1.5, 0.57  # log10 mean top activation of the post's two clusters


def _planted(n_low: int, n_high: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(LOW, 0.25, n_low), rng.normal(HIGH, 0.3, n_high)])


@pytest.mark.parametrize(("n_low", "n_high"), [(64_000, 1_300), (1_505, 31), (31, 1_505), (700, 700), (20, 20)])
def test_planted_clusters_are_found_with_their_sizes(n_low, n_high):
    log_mean_top = _planted(n_low, n_high)
    split = find_uld_cluster((10**log_mean_top).astype(np.float32))
    assert LOW < split.threshold < HIGH
    wrong = np.count_nonzero(split.is_uld != (np.arange(n_low + n_high) < n_low))
    assert wrong <= max(1, 0.002 * (n_low + n_high))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [60, 1_500, 20_000])
@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.normal(0, 0.4, n),
        lambda rng, n: rng.uniform(-1, 1, n),
        lambda rng, n: np.log10(rng.exponential(1, n)),
        lambda rng, n: rng.gamma(2, 0.3, n),
        lambda rng, n: np.clip(rng.standard_t(3, n) * 0.2, -5, 5),
    ],
    ids=["normal", "uniform", "left-skewed", "right-skewed", "heavy-tailed"],
)
def test_one_mode_is_not_parted(draw, n, seed):
    split = find_uld_cluster(10 ** draw(np.random.default_rng(seed), n))
    assert split.threshold is None
    assert split.reason
    assert not split.is_uld.any()


@pytest.mark.parametrize("mean_top", [[], [1.0], [0.1, 5.0] * 9, [2.0] * 500, [np.nan] * 50])
def test_few_equal_or_dead_features_are_not_parted(mean_top):
    split = find_uld_cluster(np.array(mean_top, np.float32))
    assert split.threshold is None
    assert split.reason


def test_dead_features_are_in_no_cluster():
    mean_top = 10 ** _planted(500, 50)
    mean_top[::7] = np.nan
    split = find_uld_cluster(mean_top)
    assert split.threshold is not None
    assert not split.is_uld[::7].any()


def test_the_order_of_the_features_does_not_matter():
    mean_top = 10 ** _planted(500, 50)
    shuffled = np.random.default_rng(1).permutation(len(mean_top))
    a, b = find_uld_cluster(mean_top), find_uld_cluster(mean_top[shuffled])
    assert a.threshold == pytest.approx(b.threshold, abs=1e-9)
    np.testing.assert_array_equal(a.is_uld[shuffled], b.is_uld)


@pytest.mark.parametrize(("n_low", "n_high"), [(980, 20), (500, 500), (50, 950)])
def test_the_mixture_is_at_least_as_likely_as_that_of_scikit_learn(n_low, n_high):
    points = _planted(n_low, n_high)
    ours = fit_mixture(points)
    theirs = GaussianMixture(2, n_init=10, tol=1e-8, max_iter=2000, random_state=0).fit(points[:, None])
    assert ours.log_likelihood >= theirs.score(points[:, None]) * len(points) - 1e-3
    order = np.argsort(theirs.means_[:, 0])
    np.testing.assert_allclose(ours.means, theirs.means_[order, 0], atol=2e-3)
    np.testing.assert_allclose(ours.weights, theirs.weights_[order], atol=2e-3)
    np.testing.assert_allclose(ours.deviations, np.sqrt(theirs.covariances_[order, 0, 0]), atol=2e-3)


def test_coherence_is_the_mean_over_all_pairs():
    rng = np.random.default_rng(0)
    encoder = rng.normal(size=(30, 7)) + 0.5
    is_uld, is_alive = np.arange(30) < 11, np.arange(30) != 4
    got = coherence(encoder, is_uld, is_alive)
    cosines = [[float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for b in encoder] for a in encoder]
    inside = [i for i in range(11) if i != 4]
    outside = list(range(11, 30))
    assert got.within == pytest.approx(np.mean([cosines[i][j] for i in inside for j in inside if i != j]))
    assert got.rest == pytest.approx(np.mean([cosines[i][j] for i in outside for j in outside if i != j]))
    assert got.between == pytest.approx(np.mean([cosines[i][j] for i in inside for j in outside]))


def test_the_chance_level_of_coherence_is_that_of_random_directions():
    rng = np.random.default_rng(0)
    everyone, nobody = np.ones(40, bool), np.zeros(40, bool)
    drawn = [coherence(rng.normal(size=(40, 16)), everyone, everyone) for _ in range(400)]
    assert np.mean([c.within for c in drawn]) == pytest.approx(0, abs=4 * drawn[0].chance_sd / 20)
    assert np.std([c.within for c in drawn]) == pytest.approx(drawn[0].chance_sd, rel=0.15)
    assert np.isnan(coherence(np.ones((40, 16)), nobody, everyone).within)


def test_shares_of_firings_and_of_mass_are_those_of_the_cluster():
    mean_top = 10 ** _planted(90, 30)
    n_active = np.arange(120) + 1
    mass = np.linspace(1, 2, 120)
    split = find_uld_cluster(mean_top)
    summary = summarise_uld(split, n_active, mass, n_rows=1000)
    assert summary.n_features == 90
    assert summary.share_of_firings == pytest.approx(n_active[:90].sum() / n_active.sum())
    assert summary.share_of_mass == pytest.approx(mass[:90].sum() / mass.sum())
    assert summary.median_density == pytest.approx(45.5 / 1000)
