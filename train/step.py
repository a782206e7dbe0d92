"""Loss and gradients of one batch, by hand: one dense matmul, then only the active pairs where few are active.

Shapes: n rows of a batch, d inputs, F features, m dead features.

Autograd of the same objective takes six matmuls of 2 n d F: encode, decode, and the gradients of the activations, of
both weight matrices and of the input (needed for b_dec only). Here the last is a matrix-vector product, and where
activity is low the others are sums over active pairs. All of it is exact: only the order of additions differs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .losses import DeadTerm, Term, auxk, ghost_gradients, normalised_squared_error, squared_error
from .models import ReluSae, SparseAutoencoder, TopKSae
from .sparse import ActivePairs

# Share of active pairs below which sums over pairs are cheaper than matmuls: they break even near 8 % (CPU, d = 1024,
# F = 8192), and both grow with d and F alike.
SPARSE_BELOW = 0.05
_PART = 64  # features summed at a time for b_dec's gradient
_SAMPLED_ROWS = 64  # of which activity is measured: at 5 % of 4096 features its standard error is below 0.1 %


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a batch is scored by, beside its reconstruction error.

    Parameters
    ----------
    l1
        Coefficient of the mean over rows of sum_k f_k (ReLU).
    ghost_grads
        Whether dead features get ghost gradients (ReLU).
    aux, aux_k
        Coefficient of AuxK, 0 for none, and the dead features it uses a row (TopK).
    precision
        `fp32` leaves the weights' type; `bf16` rounds the inputs of the dense matmuls.
    """

    l1: float = 0.0
    ghost_grads: bool = False
    aux: float = 0.0
    aux_k: int = 1
    precision: str = "fp32"


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients in the layout of `SparseAutoencoder.parameters`: (F, d), (F,), (F, d), (d,)."""

    encoder: Tensor
    b_enc: Tensor
    decoder: Tensor
    b_dec: Tensor


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one batch gives.

    Parameters
    ----------
    loss, reconstruction, l1, dead_loss
        0-d: the objective; its reconstruction error; the mean over rows of sum_k f_k, without its coefficient; the
        ghost or AuxK term.
    l0
        0-d: mean over rows of the number of active features.
    fired
        `(F,)` bool: active on some row.
    residual
        `(n, d)`: z_hat - z.
    was_sparse
        Whether the sums ran over active pairs only.
    """

    gradients: Gradients
    loss: Tensor
    reconstruction: Tensor
    l1: Tensor
    dead_loss: Tensor
    l0: Tensor
    fired: Tensor
    residual: Tensor
    was_sparse: bool


def compute_step(sae: SparseAutoencoder, z: Tensor, dead: Tensor | None, objective: Objective) -> StepResult:
    """Loss and every gradient on scaled rows `z` (n, d).

    Parameters
    ----------
    dead
        Ids of the dead features, `(m,)` int64, or None.
    """
    if isinstance(sae, TopKSae):
        return _topk_step(sae, z, dead, objective)
    if isinstance(sae, ReluSae):
        return _relu_step(sae, z, dead, objective)
    raise ValueError(f"{type(sae).__name__} has no training step")


def _relu_step(sae: ReluSae, z: Tensor, dead: Tensor | None, objective: Objective) -> StepResult:
    n = len(z)
    mm = _Matmul(objective.precision)
    centred = z - sae.b_dec  # (n, d)
    pre = mm(centred, sae.encoder.T).add_(sae.b_enc)  # (n, F)
    pre_dead = pre[:, dead] if objective.ghost_grads and dead is not None else None  # a copy: relu_ follows
    f = pre.relu_()
    is_sparse = _active_share(f) < SPARSE_BELOW
    l1_gradient = objective.l1 / n

    if is_sparse:
        pairs = ActivePairs.of_dense(f)
        residual = pairs.times(sae.decoder).add_(sae.b_dec).sub_(z)
        error = normalised_squared_error(residual, z)
        gradients = _pair_gradients(sae, pairs, centred, error, pairs.dot(error.gradient, sae.decoder) + l1_gradient)
        fired = torch.zeros(sae.d_sae, dtype=torch.bool, device=z.device).index_fill_(0, pairs.feature, True)
        l0, l1 = z.new_tensor(len(pairs.value) / n), pairs.value.sum() / n
    else:
        residual = mm(f, sae.decoder).add_(sae.b_dec).sub_(z)
        error = normalised_squared_error(residual, z)
        d_pre = mm(error.gradient, sae.decoder.T).add_(l1_gradient)  # (n, F)
        torch.ops.aten.threshold_backward.grad_input(d_pre, f, 0, grad_input=d_pre)
        gradients = Gradients(mm(d_pre.T, centred), d_pre.sum(0), mm(f.T, error.gradient), error.gradient.sum(0))
        fired = f.amax(0) > 0
        l0, l1 = torch.count_nonzero(f) / n, f.sum() / n

    dead_loss = torch.zeros_like(error.value)
    if pre_dead is not None and dead is not None:
        term = ghost_gradients(pre_dead, sae.decoder[dead], residual, z)
        dead_loss = term.value
        _add_dead(gradients, dead, term, centred)
    _finish_b_dec(gradients, sae)
    loss = error.value + objective.l1 * l1 + dead_loss
    return StepResult(gradients, loss, error.value, l1, dead_loss, l0, fired, residual, is_sparse)


def _topk_step(sae: TopKSae, z: Tensor, dead: Tensor | None, objective: Objective) -> StepResult:
    n = len(z)
    centred = z - sae.b_dec  # (n, d)
    pre = _Matmul(objective.precision)(centred, sae.encoder.T).add_(sae.b_enc)  # (n, F)
    value, feature = pre.topk(sae.k, dim=1, sorted=False)  # (n, k)
    value = value.relu_()
    pairs = ActivePairs.of_fixed(value, feature)
    is_active = pairs.value > 0
    residual = pairs.times(sae.decoder).add_(sae.b_dec).sub_(z)
    error = squared_error(residual)
    gradients = _pair_gradients(sae, pairs, centred, error, pairs.dot(error.gradient, sae.decoder).mul_(is_active))

    dead_loss = torch.zeros_like(error.value)
    if objective.aux > 0 and dead is not None:
        term = auxk(pre[:, dead], sae.decoder[dead], residual, objective.aux_k, objective.aux)
        dead_loss = term.value
        _add_dead(gradients, dead, term, centred)
    _finish_b_dec(gradients, sae)
    fired = torch.zeros(sae.d_sae, dtype=torch.bool, device=z.device).index_fill_(0, pairs.feature[is_active], True)
    loss = error.value + dead_loss
    l0, l1 = is_active.sum() / n, pairs.value.sum() / n
    return StepResult(gradients, loss, error.value, l1, dead_loss, l0, fired, residual, True)


def _pair_gradients(
    sae: SparseAutoencoder, pairs: ActivePairs, centred: Tensor, error: Term, d_pre: Tensor
) -> Gradients:
    """Gradients from those of the active pre-activations, `d_pre` (nnz,); b_dec's without the encoder's share."""
    by_feature = pairs.by_feature(sae.d_sae)
    return Gradients(
        by_feature.times(d_pre, centred),
        by_feature.sums(d_pre, len(centred)),
        by_feature.times(pairs.value, error.gradient),
        error.gradient.sum(0),
    )


def _add_dead(gradients: Gradients, dead: Tensor, term: DeadTerm, centred: Tensor) -> None:
    gradients.encoder.index_add_(0, dead, term.pre.T @ centred)
    gradients.b_enc.index_add_(0, dead, term.pre.sum(0))
    gradients.decoder.index_add_(0, dead, term.decoder)


def _finish_b_dec(gradients: Gradients, sae: SparseAutoencoder) -> None:
    """Add what b_dec gets through the encoder's input z - b_dec: -(sum over rows of d_pre) encoder."""
    # In parts: one product over F terms rounds as many times, 2e-6 at F = 16,384; in parts of 64, 1e-7.
    whole = sae.d_sae - sae.d_sae % _PART
    weight, rows = gradients.b_enc[:whole].view(-1, 1, _PART), sae.encoder[:whole].view(-1, _PART, sae.d_in)
    gradients.b_dec.sub_(torch.bmm(weight, rows).squeeze(1).sum(0))
    gradients.b_dec.sub_(gradients.b_enc[whole:] @ sae.encoder[whole:])


def _active_share(f: Tensor) -> float:
    """Share of entries above zero, measured on rows spread over the batch: the same for the same batch and weights."""
    sample = f[:: max(1, len(f) // _SAMPLED_ROWS)]
    return float(torch.count_nonzero(sample)) / sample.numel()


class _Matmul:
    """`a @ b`, with its inputs rounded to bf16 and its result in their own type where `precision` says so."""

    def __init__(self, precision: str) -> None:
        self._rounds = precision == "bf16"

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        if not self._rounds:
            return a @ b
        return (a.bfloat16() @ b.bfloat16()).to(a.dtype)
