"""The map of directions: what is near stays near, and it is the same map every time."""

import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.manifold import trustworthiness
from thresher.analysis.explorer.layout import fuzzy_weights, lay_out, neighbour_graph, principal_components

_DIGEST = """
import hashlib, numpy as np
from thresher.analysis.explorer.layout import lay_out
draw = np.random.default_rng(5)
directions = draw.normal(size=(700, 48)).astype(np.float32)
directions /= np.linalg.norm(directions, axis=1, keepdims=True)
near = np.argsort(-(directions @ directions.T), axis=1)[:, 1:21]  # as torch finds them, without its start-up
print(hashlib.sha256(lay_out(directions, near).tobytes()).hexdigest())
"""


def _clusters(n_clusters: int, each: int, d: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    centres = np.linalg.qr(draw.normal(size=(d, n_clusters)))[0].T
    of = np.repeat(np.arange(n_clusters), each)
    return (centres[of] + spread * draw.normal(size=(len(of), d)) / d**0.5).astype(np.float32), of


def _trustworthiness(directions: np.ndarray, places: np.ndarray, k: int) -> float:
    """As scikit-learn defines it (Venna and Kaski 2001), for cosine distances."""
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    n = len(unit)
    far, near = 1 - unit @ unit.T, ((places[:, None] - places) ** 2).sum(axis=2)
    np.fill_diagonal(far, -1)
    np.fill_diagonal(near, np.inf)
    rank = far.argsort(axis=1).argsort(axis=1)  # 1 for the nearest other
    taken = np.take_along_axis(rank, near.argsort(axis=1)[:, :k], axis=1)
    return float(1 - 2 / (n * k * (2 * n - 3 * k - 1)) * np.maximum(taken - k, 0).sum())


def test_planted_clusters_come_out_apart() -> None:
    directions, of = _clusters(8, 40, 32, 0.5)
    places = lay_out(directions)
    centres = np.stack([places[of == c].mean(axis=0) for c in range(8)])
    to_centre = ((places[:, None] - centres) ** 2).sum(axis=2)
    assert (to_centre.argmin(axis=1) == of).all()
    assert np.abs(places).max() == pytest.approx(1)


def test_neighbours_are_kept_far_better_than_by_principal_components() -> None:
    draw = np.random.default_rng(1)
    centres = draw.normal(size=(40, 64))
    directions = (centres[draw.integers(0, 40, 800)] + 0.8 * draw.normal(size=(800, 64))).astype(np.float32)
    by_map = _trustworthiness(directions, lay_out(directions), 10)
    by_components = _trustworthiness(directions, principal_components(directions), 10)
    assert by_map > 0.95
    assert by_map > by_components + 0.2


def test_trustworthiness_here_is_that_of_scikit_learn() -> None:
    directions, _ = _clusters(5, 30, 16, 1.0)
    places = np.random.default_rng(2).normal(size=(150, 2))
    expected = trustworthiness(directions, places, n_neighbors=10, metric="cosine")
    assert _trustworthiness(directions, places, 10) == pytest.approx(expected, abs=1e-9)


def test_the_map_does_not_depend_on_the_number_of_threads() -> None:
    found = set()
    for threads in ("1", "3"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, threads) | {"OMP_WAIT_POLICY": "PASSIVE"}
        ran = subprocess.run(
            [sys.executable, "-c", _DIGEST], env=environment, capture_output=True, text=True, check=True
        )
        found.add(ran.stdout)
    assert len(found) == 1


def test_principal_components_are_those_of_a_singular_value_decomposition() -> None:
    points = np.random.default_rng(3).normal(size=(60, 7)) * np.arange(1, 8)
    centred = points - points.mean(axis=0)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    expected = (u * s)[:, :2] * np.where(vt[:2][np.arange(2), np.abs(vt[:2]).argmax(axis=1)] < 0, -1, 1)
    np.testing.assert_allclose(principal_components(points.astype(np.float32)), expected, atol=2e-4)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 12])
def test_a_handful_of_directions_has_a_map(n: int) -> None:
    places = lay_out(np.random.default_rng(n).normal(size=(n, 6)).astype(np.float32))
    assert places.shape == (n, 2)
    assert np.isfinite(places).all()
    assert np.abs(places).max() <= 1 + 1e-6
    assert len(np.unique(places, axis=0)) == n


def test_equal_directions_and_one_of_zeros_have_a_map() -> None:
    directions = np.ones((30, 8), np.float32)
    directions[3] = 0
    assert np.isfinite(lay_out(directions)).all()


def test_weights_of_neighbours_sum_to_log2_of_their_number_and_the_nearest_weighs_one() -> None:
    distance = np.sort(np.random.default_rng(4).uniform(0.1, 1, (20, 15)), axis=1)
    weights = fuzzy_weights(distance)
    np.testing.assert_allclose(weights.sum(axis=1), np.log2(15), rtol=1e-6)
    np.testing.assert_allclose(weights[:, 0], 1)


def test_an_edge_of_both_senses_weighs_a_plus_b_less_their_product() -> None:
    unit = np.eye(3, dtype=np.float32) + 0.2 * np.arange(3)[:, None]
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    candidates = np.array([[1, 2], [0, 2], [1, 0]])
    heads, tails, weights = neighbour_graph(unit, candidates)
    cosine = unit.astype(float) @ unit.T.astype(float)
    one_way = np.zeros((3, 3))
    for i, row in enumerate(candidates):
        order = sorted(row, key=lambda j: 1 - cosine[i, j])
        one_way[i, order] = fuzzy_weights(np.array([[1 - cosine[i, j] for j in order]]))[0]
    expected = one_way + one_way.T - one_way * one_way.T
    np.testing.assert_allclose(weights, expected[heads, tails], rtol=1e-5)
    assert (heads * 3 + tails).tolist() == [1, 2, 3, 5, 6, 7]


def test_the_nearest_that_are_known_already_give_the_same_map() -> None:
    directions, _ = _clusters(4, 20, 16, 1.0)
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    known = np.pad(np.argsort(-cosine, axis=1)[:, :30], ((0, 0), (0, 2)), constant_values=-1)
    np.testing.assert_array_equal(lay_out(directions, known), lay_out(directions))
