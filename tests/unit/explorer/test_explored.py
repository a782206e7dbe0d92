"""The made run that the other tests of the explorer explore is what it says it is."""

import numpy as np
import pytest
from explored import HOSTILE_LABELS, make_explored_run
from thresher.analysis.explorer.runs import ExploredRun


def test_the_made_run_holds_what_was_planted(made, run):
    np.testing.assert_array_equal(np.flatnonzero(run.is_uld), made.ultra_low)
    np.testing.assert_array_equal(np.flatnonzero(run.is_dead), made.dead)
    assert run.notes == []
    assert run.label_names[: len(HOSTILE_LABELS)] == list(HOSTILE_LABELS)
    entropy = run.stored.statistics.label_entropy
    assert (entropy[:7] == 0).all(), "features that find a label"
    assert (entropy[7:19] > 1).all(), "features that find an attribute"


@pytest.mark.parametrize(("n_features", "seed"), [(64, 0), (96, 1), (700, 2)])
def test_other_sizes_hold_it_too(tmp_path, n_features, seed):
    made = make_explored_run(tmp_path, n_features=n_features, n_images=400, n_labels=5, seed=seed)
    run = ExploredRun(made.path)
    np.testing.assert_array_equal(np.flatnonzero(run.is_uld), made.ultra_low)
    np.testing.assert_array_equal(np.flatnonzero(run.is_dead), made.dead)


def test_a_visitor_gets_the_overview(client):
    answer = client.get("/")
    assert answer.status_code == 200
    assert "<h1>run</h1>" in answer.text
