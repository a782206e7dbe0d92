"""A sample of the requests of `tests/faults/test_explorer_fuzz.py`."""

from explored import make_explored_run
from explorer_fuzz import Fuzz
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.several import Explorer


def test_three_thousand_hostile_requests_give_no_failure_and_no_leak(tmp_path):
    paths = [make_explored_run(tmp_path, name=name, seed=i).path for i, name in enumerate(("run", "run-2"))]
    fuzz = Fuzz(make_app(Explorer(paths)), [tmp_path], seed=0)
    fuzz.run(3000)
    assert fuzz.wrong == []
    assert fuzz.statuses[200] > 300
    assert fuzz.statuses[404] > 300
    assert fuzz.statuses[400] > 100
