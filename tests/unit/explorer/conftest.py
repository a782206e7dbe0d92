"""One made run, explored by all the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from explored import Explored, make_explored_run
from starlette.testclient import TestClient
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.runs import ExploredRun
from thresher.analysis.explorer.several import Explorer


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Explored:
    """What the run was made with; see `explored.make_explored_run`. Nothing may be written into it."""
    return make_explored_run(tmp_path_factory.mktemp("explored"))


@pytest.fixture(scope="session")
def run_path(made: Explored) -> Path:
    return made.path


@pytest.fixture(scope="session")
def explored(run_path: Path) -> Explorer:
    return Explorer([run_path])


@pytest.fixture(scope="session")
def run(explored: Explorer) -> ExploredRun:
    return explored.runs[0]


@pytest.fixture(scope="session")
def client(explored: Explorer) -> Iterator[TestClient]:
    with TestClient(make_app(explored), base_url="http://127.0.0.1") as client:
        yield client
