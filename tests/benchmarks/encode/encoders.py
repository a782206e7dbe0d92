"""One pass of each implementation over rows in memory: encode, and what its own statistics take from the activations.

Each is built from the same planted weights and given the same blocks of rows. The libraries are imported when a pass is
built, from the environment that it runs in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from planted import Planted

K = 20

Pass = Callable[[Sequence[torch.Tensor]], Any]


@dataclass(frozen=True)
class Implementation:
    """A pass over blocks of rows."""

    build: Callable[[Planted], Pass]
    environment: str
    gives: str
    """What it makes beside counts, sums and the largest 20 values of each feature."""


def ours(variant: str, *, precision: str = "fp32") -> Callable[[Planted], Pass]:
    """What `stats --from-store` does with a range of rows, reading apart."""

    def build(p: Planted) -> Pass:
        from thresher.analysis.encoded_block import StoredRows, encode_block
        from thresher.analysis.section_table import SectionTable
        from thresher.analysis.totals import FeatureTotals
        from thresher.memory import keep_freed_memory
        from thresher.train.models import BatchTopKSae, ReluSae, TopKSae
        from thresher.train.rounded import RoundedTiles

        keep_freed_memory()
        weights = (p.encoder, p.b_enc, p.decoder, torch.zeros(p.x.shape[1]))
        sae: Any = ReluSae(*weights)
        if variant == "topk":
            sae = TopKSae(*weights, k=p.k)
        if variant == "batchtopk":
            sae = BatchTopKSae(*weights, k=p.k, threshold=torch.full((1,), 1e-6))
        tiles = RoundedTiles(sae) if precision == "bf16" else None

        class Array:
            tensor = staticmethod(torch.from_numpy)

        def run(blocks: Sequence[torch.Tensor]) -> FeatureTotals:
            n_rows = sum(map(len, blocks))
            totals, sections = FeatureTotals.zero(sae.d_sae, K), SectionTable.of_store(n_rows, 1, None)
            start = 0
            for rows in blocks:
                stored = StoredRows.of([Array], [rows.numpy()])  # type: ignore[list-item]
                block = encode_block(sae, stored, tile_features=4096, tiles=tiles)
                sections.add(start, np.ones(len(rows), np.uint8), block)
                indptr = np.concatenate(([0], np.cumsum(block.counts)))
                labels, valid = np.zeros(len(rows), np.int32), np.ones(len(rows), bool)
                totals.add(start, indptr, block.index, block.value, labels=labels, valid=valid)
                start += len(rows)
            return totals

        return run

    return build


def matmul(p: Planted) -> Pass:
    """The encoder's product alone, in blocks of features as ours takes it."""

    def run(blocks: Sequence[torch.Tensor]) -> None:
        out = torch.empty(len(blocks[0]), min(4096, len(p.encoder)))
        for rows in blocks:
            x = rows.float()
            for start in range(0, len(p.encoder), 4096):
                part = p.encoder[start : start + 4096]
                torch.mm(x, part.T, out=out[: len(x), : len(part)] if len(part) == out.shape[1] else None)

    return run


def post(p: Planted) -> Pass:
    """The algorithm of the post's `get_feature_data`, written anew: its repository's clone does not hold that file.

    Dense activations of a block, transposed as a view; the 20 largest of each feature joined with those kept.
    """
    w_enc, b_dec = p.encoder.T.contiguous(), torch.zeros(p.x.shape[1])

    @torch.inference_mode()
    def run(blocks: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        d_sae = w_enc.shape[1]
        top, place = torch.zeros(d_sae, K), torch.zeros(d_sae, K)
        total, count = torch.zeros(d_sae), torch.zeros(d_sae)
        start = 0
        for rows in blocks:
            f = torch.relu((rows.float() - b_dec) @ w_enc + p.b_enc).T  # (d_sae, n)
            total += f.sum(1)
            count += (f > 0).sum(1)
            value, index = torch.topk(f, k=min(K, len(rows)), dim=1)
            joined = torch.cat((top, value), 1)
            top, chosen = torch.topk(joined, k=K, dim=1)
            place = torch.gather(torch.cat((place, (index + start).float()), 1), 1, chosen)
            start += len(rows)
        return total / count, count, top, place

    return run


def saev(p: Planted) -> Pass:
    """saev's `inference`: its loop with its own SAE's formula and its own `csr_topk`."""
    import scipy.sparse
    from saev import helpers

    w_enc, w_dec = p.encoder.T.contiguous(), p.decoder

    @torch.inference_mode()
    def run(blocks: Sequence[torch.Tensor]) -> Any:
        d_sae = w_enc.shape[1]
        sparsity, mean = torch.zeros(d_sae), torch.zeros(d_sae)
        sse, sum_sq = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        sum_vec = torch.zeros(w_enc.shape[0], dtype=torch.float64)
        kept = []
        for rows in blocks:
            x = rows.float()
            f = torch.relu(x @ w_enc + p.b_enc)
            x_hat = f @ w_dec
            wide = x.double()
            difference = wide - x_hat.double()
            sse += (difference * difference).sum()
            sum_sq += (wide * wide).sum()
            sum_vec += wide.sum(0)
            mean += f.sum(0)
            sparsity += (f > 0).sum(0)
            kept.append(scipy.sparse.csr_array(f.numpy()))
        acts = scipy.sparse.vstack(kept, format="csr")
        return helpers.csr_topk(acts, k=K, axis=0)

    return run


def plain_numpy(p: Planted) -> Pass:
    """A dense pass in numpy: product, counts, sums, the 20 largest by `argpartition`, L0, reconstruction error."""
    w_enc, w_dec, b_enc = p.encoder.numpy().T, p.decoder.numpy(), p.b_enc.numpy()

    def run(blocks: Sequence[torch.Tensor]) -> tuple[np.ndarray, ...]:
        d_sae = w_enc.shape[1]
        total, count, top = np.zeros(d_sae), np.zeros(d_sae, np.int64), np.zeros((K, d_sae), np.float32)
        l0, sse = [], []
        for rows in blocks:
            x = rows.float().numpy()
            f = np.maximum(x @ w_enc + b_enc, 0)
            active = f > 0
            total += f.sum(0, dtype=np.float64)
            count += active.sum(0)
            l0.append(active.sum(1))
            joined = np.concatenate((top, f))
            chosen = np.argpartition(joined, len(joined) - K, axis=0)[-K:]
            top = np.take_along_axis(joined, chosen, axis=0)
            sse.append(np.square(f @ w_dec - x).sum(1))
        return total, count, top

    return run


OURS, SAEV = "thresher", "saev"

IMPLEMENTATIONS = {
    "ours relu": Implementation(ours("relu"), OURS, "L0, error, cosine, histogram, labels, exact sums"),
    "ours topk": Implementation(ours("topk"), OURS, "the same"),
    "ours batchtopk": Implementation(ours("batchtopk"), OURS, "the same"),
    "ours relu bf16": Implementation(ours("relu", precision="bf16"), OURS, "the same"),
    "ours topk bf16": Implementation(ours("topk", precision="bf16"), OURS, "the same"),
    "post get_feature_data": Implementation(post, OURS, "nothing"),
    "saev inference": Implementation(saev, SAEV, "error; all activations in memory"),
    "numpy": Implementation(plain_numpy, OURS, "L0, error"),
}
