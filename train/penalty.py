"""The coefficient of a sparsity penalty: given, or adapting until a mean L0 is held."""

import torch
from torch import Tensor

from .optimiser import sparsity_share
from .options import TrainOptions

_GAIN = 0.01  # change of the coefficient's logarithm a step, for each unit of log(L0 / target)
_MOST_OFF = 1.0  # |log(L0 / target)| beyond which it counts as this: a dense start does not run away
_L0_MEMORY = 0.95  # of the mean of L0 over steps: a single batch's moves by a few per cent


class SparsityPenalty:
    """The coefficient that each step's penalty has, and how it adapts.

    With `target_l0` it is multiplied, step by step, by (L0 / target)^gain, L0 a running mean of the batches': an
    integral controller on its logarithm, whose only rest is L0 = target.

    Parameters
    ----------
    options
        Of the training: the coefficient, its warm-up, the target.
    """

    def __init__(self, options: TrainOptions, device: torch.device | str = "cpu") -> None:
        self._options = options
        self._adapts = options.target_l0 is not None
        self.coefficient = torch.tensor(options.coefficient, device=device)
        self._l0 = torch.zeros((), device=device)
        self._weight = torch.zeros((), device=device)

    def at(self, step: int) -> float | Tensor:
        """Coefficient of the step after `step` steps."""
        share = sparsity_share(step, self._options)
        return self.coefficient * share if self._adapts else self._options.coefficient * share

    def observe(self, l0: Tensor) -> None:
        """Take in the mean L0 of a batch, 0-d."""
        if self._options.target_l0 is None:
            return
        self._weight.mul_(_L0_MEMORY).add_(1 - _L0_MEMORY)
        self._l0.mul_(_L0_MEMORY).add_(l0, alpha=1 - _L0_MEMORY)
        off = (self._l0 / self._weight / self._options.target_l0).clamp(min=1e-6).log()
        self.coefficient.mul_((_GAIN * off.clamp(-_MOST_OFF, _MOST_OFF)).exp())

    def tensors(self) -> dict[str, Tensor]:
        """Its state by name, for a checkpoint; none where it does not adapt."""
        if not self._adapts:
            return {}
        return {"penalty.coefficient": self.coefficient, "penalty.l0": self._l0, "penalty.weight": self._weight}
