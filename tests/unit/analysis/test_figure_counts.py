"""What figures and descriptions count is what there is."""

from types import SimpleNamespace

import numpy as np
import pytest
from thresher.analysis.align_options import AlignOptions
from thresher.analysis.alignment_figures import _cosine_histogram
from thresher.analysis.clusters import UldSplit
from thresher.analysis.describe import describe
from thresher.analysis.figures import figure_of_height, l0_figure, label_entropy_figure
from thresher.analysis.statistics import FeatureStatistics
from thresher.analysis.store_description import precision_error
from thresher.analysis.totals import FeatureTotals
from thresher.train.l0 import L0Summary


@pytest.mark.parametrize("k", [10, 20, 100])  # ln k rounded to float32 lies above ln k for each
def test_the_entropy_histogram_holds_features_that_fire_alike_on_k_classes(k):
    totals = FeatureTotals.zero(3, k)
    totals.n_active[:] = k
    totals.top_value[:] = 1.0
    totals.top_row[:] = np.arange(k)
    totals.top_label[0] = 0
    totals.top_label[1:] = np.arange(k)
    statistics = FeatureStatistics.of_totals(totals, min_labelled=1)
    no_uld = UldSplit(threshold=None, reason="none", is_uld=np.zeros(3, bool), mixture=None, bic_gain=None, dip=None)
    figure = label_entropy_figure(statistics, no_uld)
    heights = figure.axes[0].patches[0].get_data().values
    assert heights.sum() == 3
    assert (heights[0], heights[-1]) == (1, 2)


def test_labels_are_counted_over_the_readable_rows(make_store):
    made = make_store(n=60, n_labels=3, unlabelled=(0, 1), invalid=(5, 6, 7), order="source")
    record = describe(made.path).record
    assert record["n_labelled"] == 60 - 2 - 3
    assert record["n_classes"] == 3


def test_the_rows_of_a_precision_error_are_told_in_full():
    told = precision_error({"n_rows": 1192.0, "max": 0.00673, "mean": 0.00473})
    assert told == " (relative error max 0.0067, mean 0.0047 against fp32, over 1,192 rows)"
    assert precision_error({"n_rows": 0.0}) == " (relative error not known against fp32, over 0 rows)"
    assert not precision_error(None)


def test_a_few_features_above_chance_are_told_by_their_number():
    cosines = np.full(5000, 0.1, np.float32)
    cosines[:3], cosines[3] = 0.9, np.nan
    chance = SimpleNamespace(kind="isotropic", of=lambda _: np.linspace(0, 0.5, 101))
    main = SimpleNamespace(largest=SimpleNamespace(signed=cosines), chance=[chance])
    alignment = SimpleNamespace(is_counted=np.arange(5000) != 2, options=AlignOptions())
    with figure_of_height(3.0) as (_, axes):
        _cosine_histogram(axes, main, False, alignment)
    words = [text.get_text().strip() for text in axes.get_legend().get_texts()]
    assert words == ["4,998 features", "isotropic chance", "its 99th percentile 0.495: 2 features above"]


def test_two_l0_that_are_one_are_both_seen():
    counts = np.bincount([4] * 10)
    summary = L0Summary.of_counts(counts)
    statistics = SimpleNamespace(l0_counts=counts, l0_above_counts=counts, l0=summary, l0_above=summary, n_rows=10)
    (axes,) = l0_figure(statistics).axes
    outlines = [patch for patch in axes.patches if not patch.get_fill()]
    assert [patch.get_linestyle() for patch in outlines] == ["-", "--"]
