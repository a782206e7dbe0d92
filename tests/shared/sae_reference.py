"""Every SAE variant's objective in plain autograd, written from the papers: the oracle of a step's gradients.

Nothing of the package is used. W_enc and W_dec are held feature-major: `encoder` (F, d_in), `decoder` (F, d_out).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

GHOST_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained: a variant, its penalty, its remedy for dead features."""

    variant: str
    error: str = "mse"
    sparsity: float = 0.0
    decoder_norm: bool = False
    bandwidth: float = 0.5
    k: int = 12
    prefixes: tuple[int, ...] = ()
    remedy: str = "none"
    aux: float = 1 / 32
    aux_k: int = 8
    centres: bool = True


@dataclass
class Reference:
    """What autograd gives; `chosen` are the sets that rounding could change."""

    loss: Tensor
    reconstruction: Tensor
    gradients: dict[str, Tensor]
    f: Tensor
    chosen: list[Tensor] = field(default_factory=list)


class Step(torch.autograd.Function):
    """H(pre - threshold), with Rajamanoharan et al.'s pseudo-derivative (arXiv:2407.14435, equation 12)."""

    @staticmethod
    def forward(ctx, pre, threshold, bandwidth):
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre)

    @staticmethod
    def backward(ctx, gradient):
        pre, threshold = ctx.saved_tensors
        kernel = (((pre - threshold) / ctx.bandwidth).abs() < 0.5).to(pre)
        return None, (gradient * kernel * (-1 / ctx.bandwidth)).sum(0), None


class Jump(torch.autograd.Function):
    """pre H(pre - threshold), with their pseudo-derivative (equation 11)."""

    @staticmethod
    def forward(ctx, pre, threshold, bandwidth):
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(pre > threshold, pre, torch.zeros_like(pre))

    @staticmethod
    def backward(ctx, gradient):
        pre, threshold = ctx.saved_tensors
        kernel = (((pre - threshold) / ctx.bandwidth).abs() < 0.5).to(pre)
        d_threshold = (gradient * kernel * (-threshold / ctx.bandwidth)).sum(0)
        return gradient * (pre > threshold), d_threshold, None


def by_autograd(setting: Setting, weights: dict[str, Tensor], z: Tensor, y: Tensor, dead: Tensor | None) -> Reference:
    """Loss and gradients of a batch z -> y, with `dead` taken for the dead features."""
    p = {name: tensor.detach().clone().requires_grad_() for name, tensor in weights.items()}
    pre = (z - p["b_dec"] if setting.centres else z) @ p["encoder"].T + p["b_enc"]
    f, chosen, losses = _activations(setting, p, pre)
    y_hat = f @ p["decoder"] + p["b_dec"]
    reconstruction = _error(setting, y_hat, y)
    if setting.variant == "matryoshka":  # of each prefix alone, then their mean
        reconstruction = torch.stack(
            [_error(setting, f[:, :m] @ p["decoder"][:m] + p["b_dec"], y) for m in setting.prefixes]
        ).mean()
    if setting.variant == "gated":  # of relu(gate), through a decoder and bias that are constants
        y_gate = pre.relu() @ p["decoder"].detach() + p["b_dec"].detach()
        losses.append(_error(setting, y_gate, y))
    if dead is not None:
        losses.append(_dead_loss(setting, p, pre[:, dead], dead, y_hat, y, chosen))
    loss = reconstruction + sum(losses)
    gradients = torch.autograd.grad(loss, list(p.values()), allow_unused=True)
    named = {n: torch.zeros_like(p[n]) if g is None else g for n, g in zip(p, gradients, strict=True)}
    return Reference(loss.detach(), reconstruction.detach(), named, f.detach(), chosen)


def _activations(setting: Setting, p: dict[str, Tensor], pre: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Activations, the sets chosen, and the sparsity penalty."""
    match setting.variant:
        case "relu":
            f = pre.relu()
            weight = p["decoder"].norm(dim=1) if setting.decoder_norm else 1.0
            return f, [f > 0], [setting.sparsity * (f * weight).sum(1).mean()]
        case "gated":
            is_open = pre > 0
            # W_mag = exp(r_mag) W_gate (arXiv:2404.16014, equation 7)
            u = pre - p["b_enc"]
            f = torch.where(is_open, (u * p["r_mag"].exp() + p["b_mag"]).relu(), 0.0)
            return f, [is_open, f > 0], [setting.sparsity * pre.relu().sum(1).mean()]
        case "jumprelu":
            threshold = p["log_threshold"].exp()
            f = Jump.apply(pre, threshold, setting.bandwidth)
            l0 = Step.apply(pre, threshold, setting.bandwidth).sum(1).mean()
            near = ((pre - threshold) / setting.bandwidth).abs() < 0.5
            return f, [pre > threshold, near], [setting.sparsity * l0]
        case "topk":
            kept = torch.zeros_like(pre, dtype=torch.bool)
            kept.scatter_(1, pre.argsort(dim=1, descending=True, stable=True)[:, : setting.k], True)
        case _:  # batchtopk, matryoshka: the n k largest of the batch, and what ties with the least of them
            least = pre.detach().flatten().sort(descending=True).values[len(pre) * setting.k - 1]
            kept = pre >= least
    f = torch.where(kept, pre, 0.0).relu()
    return f, [f > 0], []


def _error(setting: Setting, y_hat: Tensor, y: Tensor) -> Tensor:
    square = (y_hat - y) ** 2
    if setting.error == "mse":
        return square.mean()
    norm = y.norm(dim=1, keepdim=True)
    return torch.where(norm > 0, square / norm.where(norm > 0, torch.ones_like(norm)), 0.0).mean()


def _dead_loss(
    setting: Setting, p: dict[str, Tensor], pre: Tensor, dead: Tensor, y_hat: Tensor, y: Tensor, chosen: list[Tensor]
) -> Tensor:
    missing = (y - y_hat).detach()
    match setting.remedy:
        case "ghost":  # the post's code, element by element
            ghost = pre.exp() @ p["decoder"][dead]
            norm = missing.norm(dim=1, keepdim=True)
            ghost = ghost * (norm / (2 * ghost.norm(dim=1, keepdim=True) + GHOST_EPS)).detach()
            error = (ghost - missing) ** 2 / norm
            usual = missing**2
            if setting.error == "normalized":
                norm_y = y.norm(dim=1, keepdim=True)
                usual = torch.where(norm_y > 0, usual / norm_y.where(norm_y > 0, torch.ones_like(norm_y)), 0.0)
            return ((usual / (error + GHOST_EPS)).detach() * error).mean()
        case "auxk":  # Gao et al.: the aux_k largest dead ones, through relu, reconstruct what is missing
            rank = pre.argsort(dim=1, descending=True, stable=True).argsort(1)
            used = torch.where(rank < setting.aux_k, pre, 0.0).relu()
            chosen.append(used > 0)
            return setting.aux * ((used @ p["decoder"][dead] - missing) ** 2).mean()
        case "preact":  # Anthropic: lifted towards the threshold, weighed by a decoder norm that is a constant
            below = (p["log_threshold"][dead].exp() - pre).relu()
            chosen.append(below > 0)
            return setting.aux * (below * p["decoder"][dead].norm(dim=1).detach()).sum(1).mean()
    raise AssertionError(setting.remedy)
