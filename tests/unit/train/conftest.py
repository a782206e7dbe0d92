"""Small stores of activations that an SAE can learn from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def synthetic_rows(n: int, d: int, *, seed: int = 0, n_concepts: int = 64) -> np.ndarray:
    """Sparse sums of `n_concepts` directions plus noise and an offset, `(n, d)` float32."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((n_concepts, d)) / np.sqrt(d)
    codes = rng.exponential(2.0, (n, n_concepts)) * (rng.random((n, n_concepts)) < 0.06)
    return (codes @ directions + 0.02 * rng.standard_normal((n, d)) + rng.standard_normal(d)).astype(np.float32)


@pytest.fixture
def small_store(make_store: Callable[..., Any]) -> Path:
    """A store of 700 rows of width 24, one unreadable, one site."""
    return make_store(700, 24, rows=synthetic_rows(700, 24), dtype="float32", invalid=(13,), rows_per_chunk=100).path
