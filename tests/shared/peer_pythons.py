"""The virtual environments in which other libraries are compared with."""

import os
from pathlib import Path

import pytest

VENVS = "THRESHER_PEERS_VENVS"
"""Names the folder that holds an environment for each library."""


def python_of(library: str) -> Path:
    """The interpreter that has a library; skips the test, with the reason, where there is none."""
    folder = os.environ.get(VENVS)
    if not folder:
        pytest.skip(f"{VENVS} names no folder of virtual environments: nothing to compare with")
    python = Path(folder) / library / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{python} does not exist: {library} is not installed there")
    return python
