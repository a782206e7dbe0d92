"""What figures and descriptions count is what there is."""

import numpy as np
import pytest
from thresher.analysis.clusters import UldSplit
from thresher.analysis.describe import describe
from thresher.analysis.figures import label_entropy_figure
from thresher.analysis.statistics import FeatureStatistics
from thresher.analysis.store_description import precision_error
from thresher.analysis.totals import FeatureTotals


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
