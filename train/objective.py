"""What a variant is given for a step of training, and what it gives back.

Shapes: n rows of a block, d inputs, d_out outputs (d, but for a transcoder), F features.
"""

from dataclasses import dataclass, field

from torch import Tensor

from .entries import Entries, Matmul
from .losses import Term, normalised_squared_error, squared_error


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a batch is scored by.

    Parameters
    ----------
    error
        `normalized`: squared error over the row's norm, the post's; `mse`: squared error; both means over rows and
        coordinates.
    sparsity
        Coefficient of the variant's sparsity penalty; a 0-d tensor where it adapts.
    decoder_norm
        Whether the L1 penalty weighs a feature by the norm of its decoder row, which then is free (ReLU).
    bandwidth
        Width of the kernel by which thresholds get gradients (JumpReLU).
    dead
        Remedy for dead features within a step: `ghost`, `auxk`, `preact` (JumpReLU), or `none`.
    aux, aux_k
        Coefficient of AuxK or of the pre-activation loss, and the dead features AuxK uses a row.
    precision
        `fp32` leaves the weights' type; `bf16` rounds the inputs of the dense matmuls; `tf32` leaves it to CUDA to
        do so (`precision.float32_matmuls`).
    """

    error: str = "mse"
    sparsity: float | Tensor = 0.0
    decoder_norm: bool = False
    bandwidth: float = 1e-3
    dead: str = "none"
    aux: float = 1 / 32
    aux_k: int = 1
    precision: str = "fp32"

    @property
    def matmul(self) -> Matmul:
        """The dense product at its precision."""
        return Matmul(self.precision)

    def reconstruction_error(self, residual: Tensor, target: Tensor, n_total: int) -> Term:
        """The reconstruction error of some of `n_total` rows, and its gradient."""
        if self.error == "normalized":
            return normalised_squared_error(residual, target, n_total)
        return squared_error(residual, n_total)


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that are scored together.

    Parameters
    ----------
    centred
        `(n, d)`, what the encoder multiplies.
    target
        `(n, d_out)`, what is to be reconstructed, in its scaled space.
    n_total
        Rows of the whole batch, over which losses are means: n and those of other blocks and processes.
    """

    centred: Tensor
    target: Tensor
    n_total: int


@dataclass(frozen=True, slots=True)
class Scored:
    """What a block gives: its share of the losses and of the gradients.

    Parameters
    ----------
    gradients
        By parameter name; that of `b_dec` through the reconstruction only, not through the encoder's input.
    encoded_sums
        `(F,)`, sums over rows of the gradient with respect to `centred @ encoder.T`.
    reconstruction, sparsity
        0-d: the reconstruction error; the sparsity penalty without its coefficient.
    extra
        0-d: further losses, with their coefficients.
    entries, f
        Which entries took part, and their activations.
    residual
        `(n, d_out)`: reconstruction - target.
    """

    gradients: dict[str, Tensor]
    encoded_sums: Tensor
    reconstruction: Tensor
    sparsity: Tensor
    entries: Entries
    f: Tensor
    residual: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)
