"""100,000 hostile requests to the explorer: no failure, no exception's text, no path of this machine."""

import pytest
from explored import make_explored_run
from explorer_fuzz import Fuzz
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.several import Explorer

pytestmark = pytest.mark.faults


@pytest.mark.timeout(3600)
def test_a_hundred_thousand_hostile_requests_give_no_failure_and_no_leak(tmp_path):
    paths = [make_explored_run(tmp_path, name=name, seed=i).path for i, name in enumerate(("run", "run-2"))]
    fuzz = Fuzz(make_app(Explorer(paths)), [tmp_path], seed=1)
    for _ in range(100):
        fuzz.run(1000)
        assert fuzz.wrong == []
    assert sum(fuzz.statuses.values()) == 100_000
    print(dict(fuzz.statuses))


@pytest.mark.timeout(1200)
def test_a_run_that_lacks_most_things_fails_no_more_often(tmp_path):
    made = make_explored_run(tmp_path, is_labelled=False, thumbnails=False, tokens=3, n_images=60)
    fuzz = Fuzz(make_app(Explorer([made.path])), [tmp_path], seed=2)
    fuzz.run(5000)
    assert fuzz.wrong == []
