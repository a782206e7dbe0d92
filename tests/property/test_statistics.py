"""Statistics are a function of the rows alone: no cut, order of merging or read size changes a bit of them."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from thresher.analysis.statistics import FeatureStatistics
from thresher.analysis.totals import FeatureTotals, merge_totals

# Few distinct values make ties; huge beside tiny ones make sums that rounding would betray.
values = st.sampled_from([0.0, 0.0, 0.0, 1e-6, 0.05, 0.1, 0.25, 1.0, 3.3, 70_000.0])
matrices = st.tuples(st.integers(1, 40), st.integers(1, 6)).flatmap(lambda s: arrays(np.float32, s, elements=values))


def _totals(f: np.ndarray, labels: np.ndarray, valid: np.ndarray, start: int, stop: int, k: int) -> FeatureTotals:
    part = np.where(valid[start:stop, None], f[start:stop], 0)
    row, index = np.nonzero(part)
    indptr = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=stop - start))))
    totals = FeatureTotals.zero(f.shape[1], k)
    totals.add(start, indptr, index, part[row, index], labels=labels[start:stop], valid=valid[start:stop])
    return totals


@settings(max_examples=60, deadline=None)
@given(f=matrices, k=st.integers(1, 5), data=st.data())
def test_any_cut_merged_in_any_order_gives_the_same_bits(f, k, data):
    n = len(f)
    labels = data.draw(arrays(np.int32, n, elements=st.integers(-1, 3)))
    valid = data.draw(arrays(np.bool_, n))
    cuts = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=6))})
    parts = [_totals(f, labels, valid, a, b, k) for a, b in pairwise(cuts)]
    while len(parts) > 1:
        order = data.draw(st.permutations(range(len(parts))))
        at_once = data.draw(st.integers(2, len(parts)))
        parts = [merge_totals([parts[i] for i in order[:at_once]]), *(parts[i] for i in order[at_once:])]
    whole = _totals(f, labels, valid, 0, n, k)
    a, b = (FeatureStatistics.of_totals(t, min_labelled=1) for t in (parts[0], whole))
    for name in FeatureStatistics.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
