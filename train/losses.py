"""The terms of the training objective, each with its hand-derived gradient.

Shapes: n rows of a batch, d inputs, m dead features. Everything is in the SAE's scaled input space z.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

_GHOST_EPS = 1e-6  # the post's: keeps both its quotients finite


@dataclass(frozen=True, slots=True)
class Term:
    """A term's value, a 0-d tensor, and its gradient with respect to its first argument."""

    value: Tensor
    gradient: Tensor


def normalised_squared_error(residual: Tensor, z: Tensor, n_total: int) -> Term:
    """Mean over rows and coordinates of (z_hat - z)^2 / ||z_row||_2: what the post trains on.

    The norm, not its square. A row of norm zero has no such error: it gets weight 0.

    Parameters
    ----------
    residual
        `(n, d)`, z_hat - z.
    n_total
        Rows that the mean is over; those that are not given are scored elsewhere.
    """
    norm = z.norm(dim=1, keepdim=True)
    weight = torch.where(norm > 0, 1 / (norm * (n_total * residual.shape[1])), 0.0)  # (n, 1)
    weighted = residual * weight
    return Term((weighted * residual).sum(), weighted.mul_(2))


def squared_error(residual: Tensor, n_total: int) -> Term:
    """Mean over rows and coordinates of (z_hat - z)^2, without a normaliser: Gao et al.'s L for an input of unit scale.

    Parameters
    ----------
    residual, n_total
        As in `normalised_squared_error`.
    """
    count = n_total * residual.shape[1]
    return Term(residual.square().sum() / count, residual * (2 / count))


@dataclass(frozen=True, slots=True)
class DeadTerm:
    """What a loss over the dead features gives: its value and its gradients.

    `pre` (n, m) is with respect to their pre-activations, `decoder` (m, d) to their decoder rows (None where the term
    does not depend on them), `others` to vectors of the variant, (m,) each, by name.
    """

    value: Tensor
    pre: Tensor
    decoder: Tensor | None
    others: dict[str, Tensor] = field(default_factory=dict)


def ghost_gradients(pre: Tensor, decoder: Tensor, residual: Tensor, z: Tensor | None, n_total: int) -> DeadTerm:
    """The post's ghost term: dead features, with exp for their activation, are taught the residual.

    r = z - z_hat, g = exp(pre) decoder, scaled row by row to half the norm of r; the error (g - r)^2 / ||r_row|| is
    scaled, element by element, to the size of the reconstruction error (z_hat - z)^2 / ||z_row||, or (z_hat - z)^2.
    Both scales and r are constants to the gradient (Jermyn and Templeton 2024, as the post's code has it).

    Parameters
    ----------
    pre, decoder
        `(n, m)` and `(m, d)`, of the dead features.
    residual
        `(n, d)`: z_hat - z.
    z
        `(n, d)`; None where the reconstruction error is not over the row's norm.
    n_total
        As in `normalised_squared_error`.
    """
    count = n_total * residual.shape[1]
    activation = pre.exp()  # (n, m)
    ghost = activation @ decoder  # (n, d)
    norm_r = residual.norm(dim=1, keepdim=True)  # (n, 1)
    half = norm_r / (2 * ghost.norm(dim=1, keepdim=True) + _GHOST_EPS)
    per_norm_r = torch.where(norm_r > 0, 1 / norm_r, 0.0)  # a perfect row has nothing to teach
    difference = ghost * half + residual  # g - r
    error = difference.square() * per_norm_r
    reconstruction = residual.square()
    if z is not None:
        norm_z = z.norm(dim=1, keepdim=True)
        reconstruction.mul_(torch.where(norm_z > 0, 1 / norm_z, 0.0))
    scale = reconstruction / (error + _GHOST_EPS)
    d_ghost = scale * difference * (2 * per_norm_r * half / count)  # (n, d)
    d_pre = (d_ghost @ decoder.T).mul_(activation)
    return DeadTerm((scale * error).sum() / count, d_pre, activation.T @ d_ghost)


def auxk(pre: Tensor, decoder: Tensor, residual: Tensor, k: int, coefficient: float, n_total: int) -> DeadTerm:
    """Gao et al.'s AuxK: the k largest dead features of a row, through relu, are taught the residual.

    coefficient x mean over rows and coordinates of (e_hat - e)^2, e = z - z_hat a constant, e_hat without the bias
    (arXiv:2406.04093, section 2.4 and appendix A.2).

    Parameters
    ----------
    pre, decoder, residual
        As in `ghost_gradients`.
    k
        Dead features used a row; all of them where there are fewer.
    n_total
        As in `normalised_squared_error`.
    """
    count = n_total * residual.shape[1]
    activation = pre.relu()  # (n, m)
    if k < activation.shape[1]:
        value, feature = activation.topk(k, dim=1, sorted=False)
        activation = torch.zeros_like(activation).scatter_(1, feature, value)
    difference = activation @ decoder + residual  # e_hat - e
    d_hat = difference * (2 * coefficient / count)
    d_pre = torch.where(activation > 0, d_hat @ decoder.T, 0.0)
    return DeadTerm(coefficient * difference.square().sum() / count, d_pre, activation.T @ d_hat)


def too_low(pre: Tensor, log_threshold: Tensor, decoder: Tensor, coefficient: float, n_total: int) -> DeadTerm:
    """The pre-activation loss of JumpReLU: dead features are lifted towards their thresholds, wherever they are below.

    coefficient x mean over rows of sum over the dead of relu(threshold_k - pre_k) ||W_dec_k||; the norm, 1 under
    unit-norm decoders, is a constant to the gradient (Conerly et al. 2025, "Circuits updates: January").

    Parameters
    ----------
    pre, log_threshold, decoder
        `(n, m)`, `(m,)` and `(m, d)`, of the dead features.
    """
    weight = decoder.norm(dim=1) * (coefficient / n_total)  # (m,)
    threshold = log_threshold.exp()
    below = threshold - pre  # (n, m)
    d_below = torch.where(below > 0, weight, 0.0)
    return DeadTerm((below.relu() @ weight).sum(), -d_below, None, {"log_threshold": d_below.sum(0) * threshold})
