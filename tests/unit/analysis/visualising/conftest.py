"""One planted run, made once; what writes into a run takes a copy."""

import shutil

import pytest
from planted_clip import make_planted_run
from thresher.analysis.visualising.probe import open_probe


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """A run whose features are known concepts, with 80 pictures."""
    return make_planted_run(tmp_path_factory.mktemp("planted"), n_images=80)


@pytest.fixture(scope="session")
def probed(planted):
    """Its tower and SAE."""
    return open_probe(planted.path, "cpu")


@pytest.fixture
def run_path(planted, tmp_path):
    """A copy of the run that a test may write into."""
    return shutil.copytree(planted.path, tmp_path / "run")
