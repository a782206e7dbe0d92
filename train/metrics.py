"""The reconstruction and sparsity numbers of an SAE over a set of rows, each in float64 and in raw activation units.

Shapes: n rows, d inputs, F features.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .features import SparseFeatures
from .l0 import L0_THRESHOLD, L0Summary
from .ranks import ALONE, Ranks


@dataclass(frozen=True)
class ReconstructionResult:
    """Numbers of `docs/definitions.md` over `n_rows` rows; NaN where undefined.

    Parameters
    ----------
    mse
        Mean over rows and coordinates of (x_hat - x)^2.
    normalized_mse
        Mean over rows and coordinates of (x_hat - x)^2 / ||x_row||_2, the norm, not its square. Rows of norm zero are
        left out.
    explained_variance
        1 - SSE / SST over the whole set, SST about the set's mean.
    explained_energy
        Mean over rows of 1 - ||x - x_hat||^2 / ||x||^2, uncentred (the post's 86 %). Rows of norm zero are left out.
    l1
        Mean over rows of sum_k f_k.
    l0, l0_above
        Of activations above 0, and above `L0_THRESHOLD`.
    """

    n_rows: int
    mse: float
    normalized_mse: float
    explained_variance: float
    explained_energy: float
    l1: float
    l0: L0Summary
    l0_above: L0Summary

    def to_json(self) -> dict[str, Any]:
        """The record as JSON holds it: None for NaN."""
        record = asdict(self)
        record[f"l0_above_{L0_THRESHOLD:g}"] = record.pop("l0_above")
        return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in record.items()}


class ReconstructionMetrics:
    """Accumulates `ReconstructionResult` over batches, of any size and in any order, and over parts (`merge`)."""

    def __init__(self, d_in: int, d_sae: int) -> None:
        self._n = 0
        self._mean: NDArray[np.float64] = np.zeros(d_in)
        self._sst = self._sse = self._normalised = self._energy = self._l1 = 0.0
        self._n_nonzero = 0  # rows whose norm is above zero
        self._l0 = np.zeros(d_sae + 1, np.int64)  # rows by their number of active features
        self._l0_above = np.zeros(d_sae + 1, np.int64)

    def update(self, x: Tensor, x_hat: Tensor, f: SparseFeatures | Tensor) -> None:
        """Add rows.

        Parameters
        ----------
        x, x_hat
            `(n, d)`, as stored and as reconstructed, input scaling undone.
        f
            Feature activations, sparse or `(n, F)`.
        """
        n = len(x)
        if n == 0:
            return
        if isinstance(f, SparseFeatures):
            l1, l0, l0_above = f.sum_by_row(f.value).sum(), f.indptr.diff(), f.sum_by_row(f.value > L0_THRESHOLD).long()
        else:
            l1, l0, l0_above = f.cpu().double().sum(), (f > 0).sum(1), (f > L0_THRESHOLD).sum(1)
        self._l1 += float(l1)
        self._l0 += np.bincount(l0.cpu().numpy(), minlength=len(self._l0))
        self._l0_above += np.bincount(l0_above.cpu().numpy(), minlength=len(self._l0))

        # numpy on the CPU: some devices have no float64
        x64, x_hat64 = x.cpu().double().numpy(), x_hat.cpu().double().numpy()
        squared_error = np.square(x_hat64 - x64).sum(1)
        norm = np.linalg.norm(x64, axis=1)
        nonzero = norm > 0
        self._sse += float(squared_error.sum())
        self._n_nonzero += int(nonzero.sum())
        self._normalised += float((squared_error[nonzero] / norm[nonzero]).sum())
        self._energy += float((1 - squared_error[nonzero] / np.square(norm[nonzero])).sum())
        mean = x64.mean(0)
        self._add_moments(n, mean, float(np.square(x64 - mean).sum()))

    def merge(self, other: "ReconstructionMetrics") -> None:
        """Add what another has accumulated."""
        for name in ("_sse", "_normalised", "_energy", "_l1", "_n_nonzero"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._l0 += other._l0
        self._l0_above += other._l0_above
        if other._n:
            self._add_moments(other._n, other._mean, other._sst)

    def _add_moments(self, n: int, mean: NDArray[np.float64], sst: float) -> None:
        # Chan, Golub and LeVeque's update (1983): no large sums of squares that cancel
        total = self._n + n
        shift = mean - self._mean
        self._sst += sst + float(np.square(shift).sum()) * self._n * n / total
        self._mean = self._mean + shift * (n / total)
        self._n = total

    def result(self) -> ReconstructionResult:
        """The numbers so far."""
        d_in, n, n_nonzero = len(self._mean), self._n, self._n_nonzero
        return ReconstructionResult(
            n_rows=n,
            mse=_ratio(self._sse, n * d_in),
            normalized_mse=_ratio(self._normalised, n_nonzero * d_in),
            explained_variance=1 - _ratio(self._sse, self._sst),
            explained_energy=_ratio(self._energy, n_nonzero),
            l1=_ratio(self._l1, n),
            l0=L0Summary.of_counts(self._l0),
            l0_above=L0Summary.of_counts(self._l0_above),
        )


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else float("nan")


@torch.inference_mode()
def batch_metrics(x: Tensor, raw_residual: Tensor, ranks: Ranks = ALONE) -> dict[str, float]:
    """MSE, normalised MSE and explained variance of one training batch, float32, for its log line.

    Parameters
    ----------
    x, raw_residual
        `(n, d)` rows as stored, and x_hat - x in their units: this process's share of the batch.
    """
    squared = raw_residual.square().sum(1)
    norm = x.norm(dim=1)
    nonzero = norm > 0
    sums = torch.cat([x.sum(0), x.new_full((1,), len(x))])
    ranks.add([sums])
    n = sums[-1]
    centred = x - sums[:-1] / n
    normalised = (squared[nonzero] / norm[nonzero]).sum()
    totals = torch.stack([squared.sum(), normalised, nonzero.sum().to(x.dtype), centred.square().sum()])
    ranks.add([totals])
    sse, normalised_sse, n_nonzero, sst = totals.tolist()
    return {
        "mse": _ratio(sse, float(n) * x.shape[1]),
        "normalized_mse": _ratio(normalised_sse, n_nonzero * x.shape[1]),
        "explained_variance": 1 - _ratio(sse, sst),
    }
