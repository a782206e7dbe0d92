"""Which rows name features and which score them, against whole arrays in numpy."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from thresher.analysis.naming.split import feature_rows, images_of, split_rows
from thresher.store.row_order import RowOrder


def _store(n: int, order: str = "random", fingerprint: str = "a" * 20) -> Any:
    half = n // 2
    parts = [SimpleNamespace(n_rows=k, n_images=k, order=RowOrder(k, order=order)) for k in (half, n - half)]
    return SimpleNamespace(n_rows=n, fingerprint=fingerprint, parts=parts)


def _firings(rows: np.ndarray, values: np.ndarray) -> Any:
    cuts = list(range(0, len(rows), 37)) or [0]
    return SimpleNamespace(feature_pieces=lambda f: ((rows[c : c + 37], values[c : c + 37]) for c in cuts))


def test_an_image_is_on_one_side_whatever_the_order_of_the_rows() -> None:
    n = 4000
    rows = np.arange(n)
    random, source = _store(n), _store(n, "source")
    assert sorted(images_of(random, rows).tolist()) == images_of(source, rows).tolist() == rows.tolist()
    side_of_image = np.empty(n, bool)
    side_of_image[images_of(random, rows)] = split_rows(random).is_naming(rows)
    np.testing.assert_array_equal(side_of_image, split_rows(source).is_naming(rows))
    # half and half: 4 standard deviations of a fair coin
    assert abs(side_of_image.mean() - 0.5) < 4 * 0.5 / np.sqrt(n)
    other = split_rows(_store(n, fingerprint="b" * 20)).is_naming(rows)
    assert 0.4 < (other == split_rows(random).is_naming(rows)).mean() < 0.6


def test_rows_of_one_group_are_on_one_side() -> None:
    groups = np.random.default_rng(0).integers(0, 50, 3000)
    sides = split_rows(_store(3000), groups=groups).is_naming(np.arange(3000))
    assert all(len(set(sides[groups == g].tolist())) == 1 for g in range(50))
    assert 0 < sides.mean() < 1


@pytest.mark.parametrize("n_firing", [0, 1, 30, 900])
def test_the_largest_rows_name_and_every_tenth_of_the_others_scores(n_firing: int) -> None:
    n, rng = 4000, np.random.default_rng(n_firing)
    rows = np.sort(rng.choice(n, n_firing, replace=False))
    values = np.round(rng.random(n_firing) * 8).astype(np.float32) + 1  # ties
    split = split_rows(_store(n))
    pool = np.sort(rng.choice(n, 300, replace=False))
    found = feature_rows(_firings(rows, values), 3, split, pool, naming=20, scoring=50)
    ours = split.is_naming(rows)
    order = np.lexsort((rows[ours], -values[ours]))[:20]
    np.testing.assert_array_equal(found.naming, rows[ours][order])
    np.testing.assert_array_equal(found.naming_values, values[ours][order])
    assert (found.n_naming, found.n_scoring) == (ours.sum(), (~ours).sum())
    np.testing.assert_array_equal(found.in_pool, np.isin(pool, rows))
    assert len(found.scoring) == min(50, (~ours).sum()) == len(set(found.scoring.tolist()))
    assert not split.is_naming(found.scoring).any()
    of_row = dict(zip(rows.tolist(), values.tolist(), strict=True))
    assert [of_row[row] for row in found.scoring.tolist()] == found.scoring_values.tolist()
    if n_firing == 900:  # five of each tenth: its share of values above the median is a half, give or take a tie
        middle = np.median(values[~ours])
        expected = (values[~ours] > middle).mean()
        assert abs((found.scoring_values > middle).mean() - expected) < 0.11


def test_the_pool_is_of_one_side_and_of_valid_rows() -> None:
    split = split_rows(_store(40_000))
    for naming in (True, False):
        pool = split.pool(200, lambda rows: rows % 50 == 0, 800, naming=naming)
        assert len(pool) == 200
        assert (np.diff(pool) > 0).all()
        assert (split.is_naming(pool) == naming).all()
        assert not (pool % 50).any()
    every = split.pool(10**6, lambda rows: rows >= 0, 40_000, naming=True)
    assert len(every) == split.is_naming(np.arange(40_000)).sum()
