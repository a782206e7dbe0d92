"""Loss and gradients of one batch, by hand: one dense matmul, then only the active pairs where few are active.

Shapes: n rows of this process, d inputs, d_out outputs, F features, m dead features.

Autograd of the same objective takes six matmuls of 2 n d F: encode, decode, and the gradients of the activations, of
both weight matrices and of the input (needed for b_dec only). Here the last is a matrix-vector product, and where
activity is low the others are sums over active pairs. All of it is exact: only the order of additions differs.

A batch is taken in blocks of rows, whose gradients add up to the batch's: the (rows, F) buffer of pre-activations is
bounded whatever the batch. The processes of a run do the same with their shares.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .losses import DeadTerm, auxk, ghost_gradients, too_low
from .models import BatchTopKSae, JumpReluSae, SparseAutoencoder
from .objective import Block, Objective, Scored
from .ranks import ALONE, Ranks

_PART = 16  # features summed at a time for b_dec's gradient
BLOCK_BYTES = 256 << 20
"""Most that the pre-activations of a block of rows take, unless a step is told otherwise."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one batch gives: of all its rows, in every process alike, but for `residual`.

    Parameters
    ----------
    gradients
        By parameter name, in the shapes of `SparseAutoencoder.parameters`.
    loss, reconstruction, sparsity, dead_loss
        0-d: the objective; its reconstruction error; the sparsity penalty without its coefficient (of a variant that
        has none, the mean over rows of sum_k f_k); the dead features' term.
    l0
        0-d: mean over rows of the number of active features.
    fired
        `(F,)` bool: active on some row.
    residual
        `(n, d_out)`: reconstruction - target, of this process's rows.
    was_sparse
        Whether the sums ran over active pairs only, in every block of this process.
    batch_threshold
        0-d: the smallest activation that BatchTopK kept; None for other variants.
    """

    gradients: dict[str, Tensor]
    loss: Tensor
    reconstruction: Tensor
    sparsity: Tensor
    dead_loss: Tensor
    l0: Tensor
    fired: Tensor
    residual: Tensor
    was_sparse: bool
    batch_threshold: Tensor | None = None


def compute_step(
    sae: SparseAutoencoder,
    z: Tensor,
    dead: Tensor | None,
    objective: Objective,
    *,
    target: Tensor | None = None,
    n_total: int | None = None,
    ranks: Ranks = ALONE,
    rows_at_once: int | None = None,
) -> StepResult:
    """Loss and every gradient on scaled rows.

    Parameters
    ----------
    z
        `(n, d)`, this process's rows of the batch.
    dead
        Ids of the dead features, `(m,)` int64, or None.
    target
        `(n, d_out)`, scaled, of a transcoder; else z itself.
    n_total
        Rows of the whole batch; by default n.
    rows_at_once
        Rows of a block; by default as many as `BLOCK_BYTES` hold.
    """
    target = z if target is None else target
    n_total = len(z) if n_total is None else n_total
    most = rows_at_once or max(1, BLOCK_BYTES // (sae.d_sae * z.element_size()))
    edges = [(start, min(start + most, len(z))) for start in range(0, len(z), most)]
    blocks = [Block(sae.centred(z[start:stop]), target[start:stop], n_total) for start, stop in edges]
    total = _Total(sae, n_total)
    threshold = None
    if isinstance(sae, BatchTopKSae):
        # A first pass finds what the batch keeps; the dead features' pre-activations are computed again.
        candidates = [sae.batch_candidates(_encode(sae, block, objective), n_total) for block in blocks]
        values = torch.cat([pairs.value for pairs in candidates]) if candidates else z.new_zeros(0)
        threshold = sae.batch_threshold(ranks.collect(values), n_total)
        for block, pairs in zip(blocks, candidates, strict=True):
            entries, f = sae.kept_entries(pairs, threshold)
            scored = sae.score(entries, f, block, objective)
            pre_dead = None
            if dead is not None and objective.dead != "none":
                pre_dead = objective.matmul(block.centred, sae.encoder[dead].T).add_(sae.b_enc[dead])
            total.add(scored, block, pre_dead, dead, objective)
    else:
        for block in blocks:
            pre = _encode(sae, block, objective)
            pre_dead = pre[:, dead] if dead is not None and objective.dead != "none" else None  # before it is changed
            entries, values = sae.training_entries(pre, objective)
            del pre
            total.add(sae.score(entries, values, block, objective), block, pre_dead, dead, objective)
    return total.result(ranks, objective, threshold)


def _encode(sae: SparseAutoencoder, block: Block, objective: Objective) -> Tensor:
    """Pre-activations (rows, F) of a block."""
    return objective.matmul(block.centred, sae.encoder.T).add_(sae.b_enc)


class _Total:
    """Sums over the blocks of a batch."""

    def __init__(self, sae: SparseAutoencoder, n_total: int) -> None:
        self._sae, self._n_total = sae, n_total
        self._gradients: dict[str, Tensor] = {}
        self._encoded_sums: Tensor | None = None
        # reconstruction, sparsity, further losses, dead term, active entries
        self._numbers = torch.zeros(5, dtype=torch.float64 if sae.device.type != "mps" else None, device=sae.device)
        self._fired = torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.device)
        self._residuals: list[Tensor] = []
        self._is_sparse = True

    def add(
        self, scored: Scored, block: Block, pre_dead: Tensor | None, dead: Tensor | None, objective: Objective
    ) -> None:
        """Add a block, with the term of its dead features."""
        sums, gradients = scored.encoded_sums.clone(), scored.gradients
        dead_loss = scored.reconstruction.new_zeros(())
        if pre_dead is not None and dead is not None:
            term = _dead_term(self._sae, pre_dead, dead, scored.residual, block, objective)
            dead_loss = term.value
            pre_sums = term.pre.sum(0)
            sums.index_add_(0, dead, pre_sums)
            gradients["b_enc"].index_add_(0, dead, pre_sums)
            gradients["encoder"].index_add_(0, dead, term.pre.T @ block.centred)
            if term.decoder is not None:
                gradients["decoder"].index_add_(0, dead, term.decoder)
            for name, gradient in term.others.items():
                gradients[name].index_add_(0, dead, gradient)
        extra = sum(scored.extra.values(), torch.zeros_like(dead_loss))
        # float64: a quotient of integers would be float32, whatever the weights are
        l0 = torch.count_nonzero(scored.f > 0).to(self._numbers.dtype) / self._n_total
        self._numbers += torch.stack([scored.reconstruction, scored.sparsity, extra, dead_loss, l0])
        self._fired |= scored.entries.any_by_feature(scored.f)
        self._residuals.append(scored.residual)
        self._is_sparse &= scored.entries.is_sparse
        if not self._gradients:
            self._gradients, self._encoded_sums = gradients, sums
            return
        assert self._encoded_sums is not None
        self._encoded_sums += sums
        for name, gradient in gradients.items():
            self._gradients[name] += gradient

    def result(self, ranks: Ranks, objective: Objective, threshold: Tensor | None) -> StepResult:
        """The whole batch's, summed over the processes."""
        sae = self._sae
        gradients = self._gradients or {name: torch.zeros_like(p) for name, p in sae.parameters().items()}
        if sae.centres_input and self._encoded_sums is not None:
            _add_input_bias(gradients["b_dec"], self._encoded_sums, sae)
        fired = self._fired.to(torch.int32)
        ranks.add([*gradients.values(), self._numbers, fired])
        reconstruction, sparsity, extra, dead_loss, l0 = self._numbers.to(sae.dtype)
        penalty = objective.sparsity * sparsity if sae.has_penalty else 0.0
        residual = torch.cat(self._residuals) if self._residuals else sae.b_dec.new_zeros(0, sae.d_out)
        return StepResult(
            gradients=gradients,
            loss=reconstruction + penalty + extra + dead_loss,
            reconstruction=reconstruction,
            sparsity=sparsity,
            dead_loss=dead_loss,
            l0=l0,
            fired=fired > 0,
            residual=residual,
            was_sparse=self._is_sparse,
            batch_threshold=threshold,
        )


def _dead_term(
    sae: SparseAutoencoder, pre: Tensor, dead: Tensor, residual: Tensor, block: Block, objective: Objective
) -> DeadTerm:
    decoder = sae.decoder[dead]
    if objective.dead == "ghost":
        z = block.target if objective.error == "normalized" else None
        return ghost_gradients(pre, decoder, residual, z, block.n_total)
    if objective.dead == "auxk":
        return auxk(pre, decoder, residual, objective.aux_k, objective.aux, block.n_total)
    assert isinstance(sae, JumpReluSae)
    return too_low(pre, sae.log_threshold[dead], decoder, objective.aux, block.n_total)


def _add_input_bias(gradient: Tensor, encoded_sums: Tensor, sae: SparseAutoencoder) -> None:
    """Add what b_dec gets through the encoder's input z - b_dec: -(sum over rows of d_pre) encoder."""
    # In parts: one product over F terms rounds as many times, 2e-6 at F = 16,384; in parts of 16, 1e-7, at no cost.
    whole = sae.d_sae - sae.d_sae % _PART
    weight, rows = encoded_sums[:whole].view(-1, 1, _PART), sae.encoder[:whole].view(-1, _PART, sae.d_in)
    gradient.sub_(torch.bmm(weight, rows).squeeze(1).sum(0))
    gradient.sub_(encoded_sums[whole:] @ sae.encoder[whole:])
