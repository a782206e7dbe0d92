"""Adam under unit-norm decoder rows, in one pass over blocks of rows, with the learning rate of each step."""

import torch
from torch import Tensor

from .models import SparseAutoencoder
from .options import TrainOptions
from .step import Gradients

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # torch's defaults, which the post and the field use

# Elements updated at a time, so that a block stays in cache from projection to norm: at (8192, 1024) blocks of 128 to
# 512 rows take 22 to 26 ms of CPU, the whole at once 45.
_BLOCK_ELEMENTS = 256 * 1024


def learning_rate(step: int, options: TrainOptions) -> float:
    """Learning rate of the step after `step` steps.

    Warm-up is the post's, whose scheduler steps before its optimiser: lr x min(1, (step + 2) / warmup). Decay is linear
    over the last `decay` of the run; the last step still moves.
    """
    rate = options.lr
    if options.warmup:
        rate *= min(1.0, (step + 2) / options.warmup)
    decay_steps = options.decay * options.steps
    if decay_steps:
        rate *= min(1.0, (options.steps - step) / decay_steps)
    return rate


class UnitNormAdam:
    """Adam on an SAE whose decoder rows stay on the unit sphere.

    The decoder's gradient loses its component along each row before Adam, and each row is set to norm 1 after it. The
    post normalises before each step instead, which differs only in that its last step is left unnormalised: here the
    saved rows have norm 1.
    """

    def __init__(self, sae: SparseAutoencoder) -> None:
        self.n_steps = 0
        self.mean = tuple(torch.zeros_like(p) for p in sae.parameters())
        self.square = tuple(torch.zeros_like(p) for p in sae.parameters())

    def update(self, sae: SparseAutoencoder, gradients: Gradients, lr: float) -> None:
        """Take one step; `gradients` are overwritten."""
        self.n_steps += 1
        count = torch.tensor(float(self.n_steps), device=sae.device)  # the fused kernel wants it already counted
        encoder, b_enc, decoder, b_dec = zip(
            sae.parameters(),
            (gradients.encoder, gradients.b_enc, gradients.decoder, gradients.b_dec),
            self.mean,
            self.square,
            strict=True,
        )
        for state in (encoder, b_enc, b_dec):
            _adam(*state, count, lr)
        block_rows = max(1, _BLOCK_ELEMENTS // sae.d_in)
        for start in range(0, sae.d_sae, block_rows):
            weight, gradient, mean, square = (t[start : start + block_rows] for t in decoder)
            along = (gradient * weight).sum(1, keepdim=True)
            gradient.addcmul_(along, weight, value=-1)
            _adam(weight, gradient, mean, square, count, lr)
            weight.div_(weight.norm(dim=1, keepdim=True))

    def tensors(self) -> dict[str, Tensor]:
        """Its state by name, for a checkpoint."""
        names = ("encoder", "b_enc", "decoder", "b_dec")
        return {
            f"adam.{kind}.{name}": tensor
            for kind, tensors in (("mean", self.mean), ("square", self.square))
            for name, tensor in zip(names, tensors, strict=True)
        }


def _adam(weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, count: Tensor, lr: float) -> None:
    torch._fused_adam_(
        [weight],
        [gradient],
        [mean],
        [square],
        [],
        [count],
        lr=lr,
        beta1=BETA1,
        beta2=BETA2,
        weight_decay=0.0,
        eps=EPS,
        amsgrad=False,
        maximize=False,
    )
