"""Similar images by code, against dense float64 arithmetic."""

import numpy as np
import pytest
from explored import make_explored_run
from thresher.analysis.explorer import similar
from thresher.analysis.explorer.page import Unavailable
from thresher.analysis.explorer.runs import ExploredRun
from thresher.analysis.explorer.similar import similar_rows


def dense_codes(run: ExploredRun) -> np.ndarray:
    """`(n_rows, d_sae)` float64, from the lists by row."""
    codes = np.zeros((run.features.n_rows, run.d_sae))
    for row in range(run.features.n_rows):
        index, value = run.code(row)
        codes[row, index] = value
    return codes


def cosines_with(codes: np.ndarray, row: int) -> np.ndarray:
    """Of every row; 0 where either has no feature."""
    norms = np.linalg.norm(codes, axis=1)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(codes @ codes[row] / (norms * norms[row]))


@pytest.mark.parametrize("row", [0, 5, 100, 239])
def test_the_nearest_rows_are_those_of_a_dense_comparison(run, row):
    expected = cosines_with(dense_codes(run), row)
    expected[row] = -1
    found = similar_rows(run, *run.code(row), n=12, besides=row)
    assert found.is_exact
    best = np.sort(expected)[::-1][:12]
    np.testing.assert_allclose(found.cosines, best[best > 0], atol=1e-12)
    np.testing.assert_allclose(expected[found.rows], found.cosines, atol=1e-12)
    assert row not in found.rows


def test_a_row_is_nearest_to_its_own_code(run):
    found = similar_rows(run, *run.code(7), n=1)
    assert found.rows == [7]
    assert found.cosines == pytest.approx([1.0])


@pytest.mark.parametrize("most_entries", [0, 40, 150, 400])
def test_with_dense_features_left_out_cosines_are_whole_and_what_is_called_exact_is(run, most_entries):
    codes = dense_codes(run)
    for row in (1, 50, 120):
        expected = cosines_with(codes, row)
        expected[row] = -1
        found = similar_rows(run, *run.code(row), n=5, besides=row, most_entries=most_entries)
        np.testing.assert_allclose(expected[found.rows], found.cosines, atol=1e-12)
        if found.is_exact:
            np.testing.assert_allclose(found.cosines, np.sort(expected)[::-1][:5], atol=1e-12)


def test_a_bound_that_leaves_out_what_matters_is_not_called_exact(run):
    assert not similar_rows(run, *run.code(1), n=5, besides=1, most_entries=0).is_exact


def test_lists_read_in_small_pieces_give_the_same(run, monkeypatch):
    expected = similar_rows(run, *run.code(3), n=8, besides=3)
    for gap, at_once in ((0, 1), (0, 7), (50, 100), (1 << 30, 13)):
        monkeypatch.setattr(similar, "_GAP", gap)
        monkeypatch.setattr(similar, "_AT_ONCE", at_once)
        similar._norms.cache_clear()
        found = similar_rows(run, *run.code(3), n=8, besides=3)
        assert found.rows == expected.rows
        np.testing.assert_allclose(found.cosines, expected.cosines, atol=1e-12)


def test_a_code_without_features_is_like_none(run):
    assert similar_rows(run, np.zeros(0, np.int64), np.zeros(0, np.float32)).rows == []


def test_of_several_tokens_the_nearest_of_each_other_image_is_given(tmp_path):
    made = make_explored_run(tmp_path, n_images=40, tokens=3, n_features=60)
    run = ExploredRun(made.path)
    codes = dense_codes(run)
    image = run.store.images(0, run.features.n_rows)
    row = next(row for row in range(120) if (codes[row] > 0).sum() > 2)
    expected = cosines_with(codes, row)
    best = sorted((expected[image == other].max() for other in set(image) - {image[row]}), reverse=True)[:6]
    found = similar_rows(run, *run.code(row), n=6, besides=row)
    np.testing.assert_allclose(found.cosines, best, atol=1e-12)
    assert len({image[each] for each in found.rows} | {image[row]}) == 7


def test_a_store_of_too_many_rows_is_left_out(run, monkeypatch):
    monkeypatch.setattr(similar, "MOST_ROWS", 100)
    with pytest.raises(Unavailable, match="up to 100 rows; this one has 240"):
        similar_rows(run, *run.code(0))
