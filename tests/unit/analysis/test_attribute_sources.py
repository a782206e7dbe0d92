"""Where attributes are sought: stored features, coordinates and random directions on some rows, against numpy."""

import numpy as np
import pytest
import torch
from thresher.analysis import attribute_sources
from thresher.analysis.attribute_sources import Coordinates, MatchedRows, StoredFeatures, random_dictionary
from thresher.analysis.encode import encode
from thresher.analysis.features import open_features
from thresher.store.format import Site
from thresher.store.reader import open_store


def _dense(source):
    """Every block put together; each feature stands in one block."""
    found = np.zeros((source.n_rows, source.n_features))
    seen = -1
    for row, index, value in source.blocks():
        assert not len(index) or index.min() > seen
        seen = max(seen, int(index.max(initial=-1)))
        assert (found[row, index] == 0).all()
        found[row, index] = value
    some = np.array([1, source.n_features - 1, 4])
    row, index, value = source.of_features(some)
    again = np.zeros_like(found)
    again[row, index] = value
    np.testing.assert_array_equal(again[:, some], found[:, some])
    assert not again[:, [j for j in range(source.n_features) if j not in some]].any()
    return found


@pytest.fixture
def some_rows(make_store, make_run):
    """A run on single tokens and 60 of its rows, as 60 images in another order."""
    run = make_run(make_store(n=200, invalid=(7,)).path)
    encode(run.path)
    store = open_store(run.store_path)
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(np.flatnonzero(store.valid(0, 200)), 60, replace=False))
    return run, store, MatchedRows(rows, rng.permutation(60), 60)


@pytest.mark.parametrize("at_once", [7, 4_000_000])
def test_stored_features_on_matched_rows_are_the_dense_ones(some_rows, dense, monkeypatch, at_once):
    monkeypatch.setattr(attribute_sources, "_ENTRIES_AT_ONCE", at_once)
    run, _, matched = some_rows
    source = StoredFeatures(open_features(run.path), matched)
    expected = np.zeros((60, 24))
    expected[matched.image] = dense(run)["f"][matched.rows]
    np.testing.assert_allclose(_dense(source), expected, atol=1e-4)
    assert source.mean_l0() == pytest.approx((expected > 0).sum(axis=1).mean(), abs=0.02)


@pytest.mark.parametrize("at_once", [130, 4_000_000])
def test_coordinates_are_standardised_and_both_signs_count(some_rows, monkeypatch, at_once):
    monkeypatch.setattr(attribute_sources, "_ENTRIES_AT_ONCE", at_once)
    _, store, matched = some_rows
    activations = store.activations()
    x = activations.read(0, 200)[matched.rows].astype(np.float64)
    z = np.zeros_like(x)
    z[matched.image] = (x - x.mean(0)) / x.std(0)
    found = _dense(Coordinates(activations, matched))
    np.testing.assert_allclose(found[:, 0::2], np.maximum(z, 0), atol=1e-4)
    np.testing.assert_allclose(found[:, 1::2], np.maximum(-z, 0), atol=1e-4)


def test_the_random_dictionary_keeps_the_k_largest_of_its_directions(some_rows):
    _, store, matched = some_rows
    activations = store.activations()
    x = activations.read(0, 200)[matched.rows].astype(np.float64)
    generator = torch.Generator().manual_seed(5)
    directions = torch.randn(40, 8, generator=generator).double().numpy()
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    pre = (x - x.mean(0)) / x.std(0) @ directions.T
    expected = np.zeros((60, 40))
    expected[matched.image] = np.where(pre >= np.sort(pre, axis=1)[:, -3][:, None], np.maximum(pre, 0), 0)
    found = random_dictionary(activations, matched, 40, 3, 5)
    np.testing.assert_allclose(_dense(found), expected, atol=1e-4)


def test_an_image_of_several_rows_has_the_largest_of_their_activations(make_store, make_run, dense):
    site = Site(1, "resid_post", "patch")
    run = make_run(make_store(n=30, tokens=4, sites=(site,), rows_per_chunk=16).path)
    encode(run.path)
    store = open_store(run.store_path)
    rows = np.arange(store.n_rows)
    matched = MatchedRows(rows, store.images(0, store.n_rows), 30)
    f, x = dense(run)["f"], dense(run)["x"]
    z = (x - x.mean(0)) / x.std(0)
    of_image = [rows[matched.image == image] for image in range(30)]
    found = _dense(StoredFeatures(open_features(run.path), matched))
    np.testing.assert_allclose(found, [f[here].max(axis=0) for here in of_image], atol=1e-4)
    found = _dense(Coordinates(store.activations(), matched))
    np.testing.assert_allclose(found[:, 1::2], [np.maximum(-z[here], 0).max(axis=0) for here in of_image], atol=1e-4)


def test_a_coordinate_that_does_not_vary_is_no_feature_and_an_unreadable_row_is_refused(make_store):
    rows = np.random.default_rng(0).normal(size=(50, 3))
    rows[:, 1] = 4.0
    store = open_store(make_store(n=50, d=3, rows=rows, invalid=(9,)).path)
    matched = MatchedRows(np.arange(5), np.arange(5), 5)
    assert not _dense(Coordinates(store.activations(), matched))[:, 2:4].any()
    with pytest.raises(ValueError, match="row 9 is of an image that could not be read"):
        Coordinates(store.activations(), MatchedRows(np.array([9]), np.array([0]), 1))
