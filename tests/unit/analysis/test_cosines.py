import numpy as np
import pytest
import torch
from scipy import stats
from thresher.analysis.cosines import Level, largest_cosines, nearest_vectors, unit_rows
from thresher.analysis.null_directions import RandomDirections, sample_moments


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def made():
    rng = np.random.default_rng(0)
    directions, vectors = rng.standard_normal((50, 12)), unit(rng.standard_normal((40, 12)))
    directions[7] = 0
    vectors[3] = 0
    vectors[9] = vectors[8]  # equal ones: the first counts
    directions[8] = vectors[8] * 5
    directions[10] = -vectors[20]
    with np.errstate(invalid="ignore"):
        cosine = unit(directions) @ vectors.T
    return directions, vectors, cosine


def test_the_largest_cosines_are_those_of_a_dense_product_in_float64(made):
    directions, vectors, cosine = made
    blocks = [unit_rows(part) for part in torch.from_numpy(directions).split(16)]
    found = largest_cosines(blocks, torch.from_numpy(vectors).float())
    known = np.arange(50) != 7
    np.testing.assert_allclose(found.signed[known], cosine.max(axis=1)[known], atol=1e-6)
    np.testing.assert_allclose(found.absolute[known], np.abs(cosine).max(axis=1)[known], atol=1e-6)
    np.testing.assert_array_equal(found.signed_id[known], cosine.argmax(axis=1)[known])
    np.testing.assert_array_equal(found.absolute_id[known], np.abs(cosine).argmax(axis=1)[known])
    assert found.signed_id[8] == 8
    assert found.absolute_id[10] == 20
    assert found.absolute[10] == pytest.approx(1, abs=1e-6)
    assert found.signed[10] < 1


def test_a_vector_of_zeros_has_no_cosine(made):
    directions, vectors, _ = made
    found = largest_cosines([unit_rows(torch.from_numpy(directions))], torch.from_numpy(vectors).float())
    again, nearest = nearest_vectors(
        [unit_rows(torch.from_numpy(directions))], torch.from_numpy(vectors).float(), [Level("any", -2.0, False)], 4
    )
    np.testing.assert_array_equal(again.signed, found.signed)
    np.testing.assert_array_equal(again.absolute_id, found.absolute_id)
    assert np.isnan(found.signed[7])
    assert np.isnan(found.absolute[7])
    assert found.signed_id[7] == found.absolute_id[7] == -1
    assert (nearest.top_id[7] == -1).all()
    assert nearest.n_above["any"].tolist() == [0 if i == 7 else 40 for i in range(50)]


def test_the_nearest_vectors_and_their_number_are_those_of_a_dense_product(made):
    directions, vectors, cosine = made
    levels = [Level("signed", 0.3, False), Level("absolute", 0.3, True)]
    blocks = [unit_rows(part) for part in torch.from_numpy(directions).split(7)]
    _, found = nearest_vectors(blocks, torch.from_numpy(vectors).float(), levels, 5)
    for i in np.flatnonzero(np.arange(50) != 7):
        expected = np.sort(np.abs(cosine[i]))[::-1][:5]
        np.testing.assert_allclose(np.abs(found.top_cosine[i]), expected, atol=1e-6)
        np.testing.assert_allclose(found.top_cosine[i], cosine[i][found.top_id[i]], atol=1e-6)
        assert found.n_above["signed"][i] == (cosine[i] > 0.3).sum()
        assert found.n_above["absolute"][i] == (np.abs(cosine[i]) > 0.3).sum()


def test_the_nearest_directions_of_each_vector_are_those_of_a_dense_product(made):
    directions, vectors, cosine = made
    blocks = [unit_rows(part) for part in torch.from_numpy(directions).split(7)]
    _, found = nearest_vectors(blocks, torch.from_numpy(vectors).float(), [], 5)
    for j in range(40):
        of_vector = np.where(np.isnan(cosine[:, j]), -1, np.abs(cosine[:, j]))
        np.testing.assert_allclose(np.abs(found.of_vector_cosine[j]), np.sort(of_vector)[::-1][:5], atol=1e-6)
        np.testing.assert_allclose(found.of_vector_cosine[j], cosine[found.of_vector_id[j], j], atol=1e-6)
        assert 7 not in found.of_vector_id[j]


def test_a_vector_near_fewer_directions_than_wanted_has_places_unfilled():
    directions = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0.6, -0.8, 0]])
    _, found = nearest_vectors([unit_rows(directions[:2]), unit_rows(directions[2:])], torch.eye(3)[:2], [], 4)
    assert found.of_vector_id.tolist() == [[0, 2, -1, -1], [2, 0, -1, -1]]
    np.testing.assert_allclose(found.of_vector_cosine, [[1, 0.6, np.nan, np.nan], [-0.8, 0, np.nan, np.nan]], atol=1e-6)


def test_fewer_vectors_than_wanted_leave_places_unfilled():
    _, found = nearest_vectors([unit_rows(torch.ones(1, 3))], torch.eye(3)[:2], [], 4)
    assert sorted(found.top_id[0, :2].tolist()) == [0, 1]
    assert found.top_id[0, 2:].tolist() == [-1, -1]
    assert np.isnan(found.top_cosine[0, 2:]).all()


def test_isotropic_chance_at_the_shape_of_the_post_is_what_theory_says():
    d, m, n = 1024, 4096, 1536
    neurons = unit(np.random.default_rng(5).standard_normal((m, d))).astype(np.float32)
    found = largest_cosines(RandomDirections("isotropic", d, 0).blocks(n), torch.from_numpy(neurons))
    # a cosine squared is Beta(1/2, (d - 1)/2); the m cosines of one direction are nearly independent

    def cdf(c):
        return (1 - stats.beta.sf(np.asarray(c) ** 2, 0.5, (d - 1) / 2) / 2) ** m

    assert stats.kstest(found.signed, cdf).pvalue > 0.01
    for values, both_sides, p99 in ((found.signed, 1, 0.1422), (found.absolute, 2, 0.1466)):
        exact = stats.beta.isf(2 * (1 - 0.99 ** (1 / m)) / both_sides, 0.5, (d - 1) / 2) ** 0.5
        assert exact == pytest.approx(p99, abs=5e-4)
        assert np.quantile(values, 0.99) == pytest.approx(exact, abs=0.003)
    assert np.sqrt(2 * np.log(m) / d) == pytest.approx(0.127, abs=5e-4)
    assert np.quantile(found.signed, 0.01) < 0.127 < np.quantile(found.signed, 0.95)
    assert (found.absolute >= found.signed).all()


def test_random_directions_are_the_same_again_however_many_are_drawn():
    few, many = (np.concatenate(list(RandomDirections("isotropic", 6, 3).blocks(n))) for n in (1500, 2600))
    assert few.shape == (1500, 6)
    np.testing.assert_array_equal(few[:1024], many[:1024])
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=1e-6)
    other = np.concatenate(list(RandomDirections("isotropic", 6, 4).blocks(1500)))
    assert not np.allclose(few, other)


@pytest.mark.parametrize("order", ["random", "source"])
def test_moments_of_all_rows_are_those_of_numpy(make_store, order):
    from thresher.store.reader import open_store

    rows = np.random.default_rng(1).standard_normal((300, 8)) * np.arange(1, 9) + 100
    made = make_store(rows=rows, dtype="float32", invalid=(3, 80), order=order)
    array = open_store(made.path).activations()
    stored = array.read_positions(0, 298).astype(np.float64)
    found = sample_moments(array, 10_000, seed=0)
    assert found.n_rows == 298
    np.testing.assert_allclose(found.mean, stored.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(stored.T, bias=True), rtol=1e-9, atol=1e-9)
    values = np.linalg.eigvalsh(np.cov(stored.T, bias=True))
    assert found.effective_dimensions == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert sample_moments(array, 64, seed=0).n_rows in range(48, 65)
    again = [sample_moments(array, 64, seed=seed).mean for seed in (0, 0, 1)]
    np.testing.assert_array_equal(again[0], again[1])
    assert not np.allclose(again[0], again[2])


def test_directions_of_a_covariance_have_it_and_are_wider_than_isotropic_ones(make_store):
    from thresher.store.reader import open_store

    rng = np.random.default_rng(2)
    scale = np.geomspace(8, 0.05, 16)
    made = make_store(2000, 16, rows=rng.standard_normal((2000, 16)) * scale, dtype="float32", rows_per_chunk=512)
    moments = sample_moments(open_store(made.path).activations(), 2000, seed=0)
    matched = moments.directions(seed=0)
    np.testing.assert_allclose(matched.root @ matched.root.T, moments.covariance, atol=1e-9)
    neurons = torch.from_numpy(unit(rng.standard_normal((200, 16)) * scale)).float()  # they write as the rows vary
    wide, even = (
        largest_cosines(null.blocks(4000), neurons).signed for null in (matched, RandomDirections("isotropic", 16, 0))
    )
    assert np.median(wide) > np.quantile(even, 0.95)


def test_rows_that_do_not_vary_have_no_matched_directions(make_store):
    from thresher.store.reader import open_store

    made = make_store(20, 4, rows=np.ones((20, 4)))
    assert sample_moments(open_store(made.path).activations(), 20, seed=0).directions(0) is None
    single = make_store(1, 4, name="single.zarr")
    assert sample_moments(open_store(single.path).activations(), 20, seed=0).directions(0) is None
