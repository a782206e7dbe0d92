"""The coefficient of a sparsity penalty: given, or adapting until a mean L0 is held."""

import torch
from torch import Tensor

from .optimiser import sparsity_share
from .options import TrainOptions

# e = log(L0 / target), of L0's running mean.

# An L1 penalty: the coefficient's logarithm changes by _PULL x e + _BRAKE x (change of e) a step. Alone, the pull
# overshoots: L0 answers hundreds of steps late, and features that died meanwhile stay dead. With the brake the
# coefficient rests while e falls by _PULL / _BRAKE of itself a step: L0 nears its target with a memory of 100 steps.
_PULL = 0.02
_BRAKE = 2.0
# JumpReLU's L0 penalty moves thresholds alone, by a rate that Adam bounds: L0 answers at once, but thresholds that went
# up stay there when the coefficient falls to 0 (asked for 24, L0 rested at 16). Hence a coefficient of either sign:
# multiplier + _PUSH x scale x e, where the multiplier adds up _HOLD x scale x e, so that an offset is gone after
# _PUSH / _HOLD = 200 steps, and the scale is the multiplier's largest size of late. Far from the target it adds up
# less: there L0 waits for steps, and what was added would have to be taken off below the target.
_PUSH = 10.0
_HOLD, _HOLD_FAR = 0.05, 0.002
_SCALE_MEMORY = 0.999
_MOST_OFF = 1.0  # |e| beyond which the pull grows no more: a start far off does not wind the coefficient up
_LEAST_COEFFICIENT = 1e-8
_LEAST_L0 = 1e-2  # what a lower one counts as, so that its logarithm stays finite
_L0_MEMORY = 0.9  # of the mean of L0 over steps: a single batch's moves by a few per cent


class SparsityPenalty:
    """The coefficient that each step's penalty has, and how it adapts.

    With `target_l0` it follows L0, a running mean of the batches', by a proportional and integral controller whose only
    rest is L0 = target. That of an L1 penalty stays above 0 and moves by factors. That of JumpReLU's L0 penalty may be
    below 0, and then lowers thresholds: with it the penalty is the Lagrangian's of least error at that L0, its
    proportional part what the gradient of a quadratic (L0 / target - 1)^2 gives (Rajamanoharan et al. 2024,
    arXiv:2407.14435, who name that loss for a given L0; alone, it rests where it balances the error, off the target).

    Parameters
    ----------
    options
        Of the training: the coefficient, its warm-up, the target.
    """

    def __init__(self, options: TrainOptions, device: torch.device | str = "cpu") -> None:
        self._options = options
        self._adapts = options.target_l0 is not None
        self._is_signed = self._adapts and options.variant == "jumprelu"
        # Above 0 where it adapts: it moves by factors.
        least = _LEAST_COEFFICIENT if self._adapts else 0.0
        self.coefficient = torch.tensor(max(options.coefficient, least), device=device)
        self._multiplier, self._scale = self.coefficient.clone(), self.coefficient.clone()
        self._l0 = torch.zeros((), device=device)
        self._weight = torch.zeros((), device=device)

    def at(self, step: int) -> float | Tensor:
        """Coefficient of the step after `step` steps."""
        share = sparsity_share(step, self._options)
        return self.coefficient * share if self._adapts else self._options.coefficient * share

    @property
    def l0(self) -> float:
        """Running mean of the L0 of the batches taken in; NaN before the first, and where it does not adapt."""
        return float(self._l0 / self._weight)

    def observe(self, l0: Tensor) -> None:
        """Take in the mean L0 of a batch, 0-d."""
        if self._options.target_l0 is None:
            return
        before = self._l0 / self._weight  # NaN before the first step
        self._weight.mul_(_L0_MEMORY).add_(1 - _L0_MEMORY)
        self._l0.mul_(_L0_MEMORY).add_(l0, alpha=1 - _L0_MEMORY)
        now = (self._l0 / self._weight).clamp(min=_LEAST_L0)
        off = (now / self._options.target_l0).log().clamp(-_MOST_OFF, _MOST_OFF)
        if self._is_signed:
            hold = torch.where(off.abs() < _MOST_OFF, _HOLD, _HOLD_FAR)
            self._multiplier.add_(hold * self._scale * off)
            self._scale.copy_(torch.maximum(self._scale * _SCALE_MEMORY, self._multiplier.abs()))
            self._scale.clamp_(min=_LEAST_COEFFICIENT)
            self.coefficient.copy_(self._multiplier + _PUSH * self._scale * off)
            return
        change = (now / before.clamp(min=_LEAST_L0)).log().nan_to_num(0.0)
        self.coefficient.mul_((_PULL * off + _BRAKE * change).exp())

    def tensors(self) -> dict[str, Tensor]:
        """Its state by name, for a checkpoint; none where it does not adapt."""
        if not self._adapts:
            return {}
        state = {"penalty.coefficient": self.coefficient, "penalty.l0": self._l0, "penalty.weight": self._weight}
        if self._is_signed:
            state |= {"penalty.multiplier": self._multiplier, "penalty.scale": self._scale}
        return state
