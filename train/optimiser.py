"""Adam under unit-norm decoder rows, in one pass over blocks of rows, with the learning rate of each step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .models import SparseAutoencoder
from .options import TrainOptions

EPS = 1e-8  # torch's default, which the post and the field use

# Elements updated at a time, so that a block stays in cache from projection to norm: at (8192, 1024) blocks of 128 to
# 512 rows take 22 to 26 ms of CPU, the whole at once 45. A GPU takes the whole at once.
_BLOCK_ELEMENTS = 256 * 1024


def learning_rate(step: int, options: TrainOptions) -> float:
    """Learning rate of the step after `step` steps.

    Warm-up is the post's, whose scheduler steps before its optimiser: lr x min(1, (step + 2) / warmup). The rate falls
    over the last `decay` of the run, in a line or along half a cosine; the last step still moves.
    """
    rate = options.lr
    if options.warmup:
        rate *= min(1.0, (step + 2) / options.warmup)
    decay_steps = options.decay * options.steps
    if decay_steps and options.schedule != "constant":
        left = min(1.0, (options.steps - step) / decay_steps)
        rate *= left if options.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2
    return rate


def sparsity_share(step: int, options: TrainOptions) -> float:
    """Share of the sparsity coefficient that the step after `step` steps has: it rises in a line from 0."""
    return min(1.0, step / options.sparsity_warmup) if options.sparsity_warmup else 1.0


@dataclass(frozen=True, kw_only=True)
class AdamSettings:
    """How weights move.

    Parameters
    ----------
    beta1, beta2
        Decay of the means of gradients and of their squares.
    weight_decay
        Share of a weight, times the learning rate, that it loses each step: AdamW (Loshchilov and Hutter 2019). It acts
        on the encoder, and on a decoder whose rows are free.
    clip_norm
        The gradients' norm, all together, is scaled down to this where it exceeds it; 0 for never.
    unit_norm
        Whether decoder rows stay on the unit sphere.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    unit_norm: bool = True


class UnitNormAdam:
    """Adam or AdamW on an SAE whose decoder rows stay on the unit sphere, unless they are free.

    The decoder's gradient loses its component along each row before Adam, and each row is set to norm 1 after it. The
    post normalises before each step instead, which differs only in that its last step is left unnormalised: here the
    saved rows have norm 1. Where gradients are clipped, it is by their norm before that.
    """

    def __init__(self, sae: SparseAutoencoder, settings: AdamSettings | None = None) -> None:
        self.settings = settings or AdamSettings()
        self.n_steps = 0
        self.mean = {name: torch.zeros_like(p) for name, p in sae.parameters().items()}
        self.square = {name: torch.zeros_like(p) for name, p in sae.parameters().items()}

    def update(self, sae: SparseAutoencoder, gradients: Mapping[str, Tensor], lr: float) -> None:
        """Take one step; `gradients`, by parameter name, are overwritten."""
        settings = self.settings
        if settings.clip_norm:
            norm = gradient_norm(gradients)
            scale = (settings.clip_norm / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1)
            for gradient in gradients.values():
                gradient.mul_(scale)
        self.n_steps += 1
        # The fused kernel wants it already counted. Filled there: a copy of a number to a GPU waits for its kernels.
        count = torch.full((), float(self.n_steps), device=sae.device)
        for name, weight in sae.parameters().items():
            state = (weight, gradients[name], self.mean[name], self.square[name])
            decay = settings.weight_decay if name in ("encoder", "decoder") else 0.0
            if name == "decoder" and settings.unit_norm:
                self._update_unit_rows(*state, count, lr)
            else:
                self._adam(*state, count, lr * sae.rates.get(name, 1.0), decay)

    def _update_unit_rows(
        self, weights: Tensor, gradients: Tensor, means: Tensor, squares: Tensor, count: Tensor, lr: float
    ) -> None:
        n_rows, width = weights.shape
        block_rows = max(1, _BLOCK_ELEMENTS // width) if weights.device.type == "cpu" else n_rows
        for start in range(0, n_rows, block_rows):
            block = slice(start, start + block_rows)
            weight, gradient = weights[block], gradients[block]
            along = (gradient * weight).sum(1, keepdim=True)
            gradient.addcmul_(along, weight, value=-1)
            self._adam(weight, gradient, means[block], squares[block], count, lr, 0.0)
            weight.div_(weight.norm(dim=1, keepdim=True))

    def _adam(
        self, weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, count: Tensor, lr: float, decay: float
    ) -> None:
        take = torch._fused_adamw_ if decay else torch._fused_adam_
        take(
            [weight],
            [gradient],
            [mean],
            [square],
            [],
            [count],
            lr=lr,
            beta1=self.settings.beta1,
            beta2=self.settings.beta2,
            weight_decay=decay,
            eps=EPS,
            amsgrad=False,
            maximize=False,
        )

    def forget(self, features: Tensor) -> None:
        """Reset the moments of some features, `(m,)`, whose weights were set anew."""
        for moments in (self.mean, self.square):
            for name, tensor in moments.items():
                if name != "b_dec":
                    tensor.index_fill_(0, features, 0)

    def tensors(self) -> dict[str, Tensor]:
        """Its state by name, for a checkpoint."""
        return {
            f"adam.{kind}.{name}": tensor
            for kind, tensors in (("mean", self.mean), ("square", self.square))
            for name, tensor in tensors.items()
        }


def gradient_norm(gradients: Mapping[str, Tensor]) -> Tensor:
    """Norm of all gradients together, 0-d."""
    return torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
