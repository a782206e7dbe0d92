"""The terms of the training objective, each with its hand-derived gradient.

Shapes: n rows of a batch, d inputs, m dead features. Everything is in the SAE's scaled input space z.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_GHOST_EPS = 1e-6  # the post's: keeps both its quotients finite


@dataclass(frozen=True, slots=True)
class Term:
    """A term's value, a 0-d tensor, and its gradient with respect to its first argument."""

    value: Tensor
    gradient: Tensor


def normalised_squared_error(residual: Tensor, z: Tensor) -> Term:
    """Mean over rows and coordinates of (z_hat - z)^2 / ||z_row||_2: what the post trains on.

    The norm, not its square. A row of norm zero has no such error: it gets weight 0.

    Parameters
    ----------
    residual
        `(n, d)`, z_hat - z.
    """
    norm = z.norm(dim=1, keepdim=True)
    weight = torch.where(norm > 0, 1 / (norm * residual.numel()), 0.0)  # (n, 1)
    weighted = residual * weight
    return Term((weighted * residual).sum(), weighted.mul_(2))


def squared_error(residual: Tensor) -> Term:
    """Mean over rows and coordinates of (z_hat - z)^2, without a normaliser: Gao et al.'s L for an input of unit scale.

    Parameters
    ----------
    residual
        `(n, d)`, z_hat - z.
    """
    return Term(residual.square().mean(), residual * (2 / residual.numel()))


@dataclass(frozen=True, slots=True)
class DeadTerm:
    """What a loss over the dead features gives: its value and its gradients.

    `pre` (n, m) is with respect to their pre-activations, `decoder` (m, d) to their decoder rows.
    """

    value: Tensor
    pre: Tensor
    decoder: Tensor


def ghost_gradients(pre: Tensor, decoder: Tensor, residual: Tensor, z: Tensor) -> DeadTerm:
    """The post's ghost term: dead features, with exp for their activation, are taught the residual.

    r = z - z_hat, g = exp(pre) decoder, scaled row by row to half the norm of r; the error (g - r)^2 / ||r_row|| is
    scaled, element by element, to the size of the reconstruction error (z_hat - z)^2 / ||z_row||. Both scales and r
    are constants to the gradient (Jermyn and Templeton 2024, as the post's code has it).

    Parameters
    ----------
    pre, decoder
        `(n, m)` and `(m, d)`, of the dead features.
    residual, z
        `(n, d)`: z_hat - z, and z.
    """
    activation = pre.exp()  # (n, m)
    ghost = activation @ decoder  # (n, d)
    norm_r = residual.norm(dim=1, keepdim=True)  # (n, 1)
    half = norm_r / (2 * ghost.norm(dim=1, keepdim=True) + _GHOST_EPS)
    per_norm_r = torch.where(norm_r > 0, 1 / norm_r, 0.0)  # a perfect row has nothing to teach
    difference = ghost * half + residual  # g - r
    error = difference.square() * per_norm_r
    norm_z = z.norm(dim=1, keepdim=True)
    scale = residual.square() * torch.where(norm_z > 0, 1 / norm_z, 0.0) / (error + _GHOST_EPS)
    d_ghost = scale * difference * (2 * per_norm_r * half / residual.numel())  # (n, d)
    d_pre = (d_ghost @ decoder.T).mul_(activation)
    return DeadTerm((scale * error).mean(), d_pre, activation.T @ d_ghost)


def auxk(pre: Tensor, decoder: Tensor, residual: Tensor, k: int, coefficient: float) -> DeadTerm:
    """Gao et al.'s AuxK: the k largest dead features of a row, through relu, are taught the residual.

    coefficient x mean over rows and coordinates of (e_hat - e)^2, e = z - z_hat a constant, e_hat without the bias
    (arXiv:2406.04093, section 2.4 and appendix A.2).

    Parameters
    ----------
    pre, decoder, residual
        As in `ghost_gradients`.
    k
        Dead features used a row; all of them where there are fewer.
    """
    activation = pre.relu()  # (n, m)
    if k < activation.shape[1]:
        value, feature = activation.topk(k, dim=1, sorted=False)
        activation = torch.zeros_like(activation).scatter_(1, feature, value)
    difference = activation @ decoder + residual  # e_hat - e
    d_hat = difference * (2 * coefficient / residual.numel())
    d_pre = torch.where(activation > 0, d_hat @ decoder.T, 0.0)
    return DeadTerm(coefficient * difference.square().mean(), d_pre, activation.T @ d_hat)
