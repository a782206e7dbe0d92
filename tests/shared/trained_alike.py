"""Settings of every variant and remedy at a tiny size, and what is left of a training to compare with another."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from thresher.train import member
from thresher.train.options import TrainOptions

STEPS, BATCH = 24, 50  # of which 3 processes take 16, 17 and 17 rows
BASE = TrainOptions(
    expansion=4, lr=3e-3, warmup=4, batch_size=BATCH, rows=STEPS * BATCH, device="cpu", dead_after_rows=150,
    log_every=1, eval_every=10, checkpoint_every=9,
)  # fmt: skip
SETTINGS = {
    "relu with ghost gradients": replace(
        BASE, variant="relu", l1=0.3, lr=2e-2, dead_remedy="ghost", b_dec_init="geometric-median",
        encoder_init="independent", normalize="none", clip_norm=0.5,
    ),
    "relu with free decoder rows": replace(BASE, variant="relu", l1=0.3, decoder_norm=True, weight_decay=0.1),
    "relu at a target L0": replace(BASE, variant="relu", target_l0=5, l1=1e-2, sparsity_warmup=3),
    "topk with AuxK": replace(BASE, variant="topk", k=3, normalize="layer-norm"),
    "batchtopk with AuxK": replace(BASE, variant="batchtopk", k=3),
    "matryoshka": replace(BASE, variant="matryoshka", k=3, groups=3),
    "jumprelu": replace(
        BASE, variant="jumprelu", l0_penalty=0.05, bandwidth=0.5, initial_threshold=2.5, dead_after_rows=50, aux=0.1
    ),
    "jumprelu at a target L0": replace(BASE, variant="jumprelu", target_l0=5, bandwidth=0.5, initial_threshold=2.5),
    "gated with resampling": replace(BASE, variant="gated", l1=30.0, lr=5e-2, resample_every=6, dead_after_rows=60),
    "topk in parts of a batch": replace(
        BASE, variant="topk", k=3, micro_batch_size=7, dead_remedy="resample", resample_every=6, dead_after_rows=60
    ),
    "transcoder": replace(BASE, variant="topk", k=3, layer=1, to_layer=2),
}  # fmt: skip

Numbers = dict[str, torch.Tensor]


def digest(numbers: Numbers) -> str:
    """One word for every bit of a state."""
    found = hashlib.sha256()
    for name in sorted(numbers):
        found.update(name.encode() + numbers[name].contiguous().numpy().tobytes())
    return found.hexdigest()


@contextmanager
def in_float64() -> Iterator[None]:
    """Trains in float64, in which the order of additions decides no comparison of activations."""
    made = member.new_sae
    with mock.patch.object(member, "new_sae", lambda *given: made(*given).to(dtype=torch.float64)):
        yield


@contextmanager
def keeping_states() -> Iterator[dict[tuple[str, int], Numbers]]:
    """Keeps the last state of each run and process: weights, moments, counters, coefficient."""
    states: dict[tuple[str, int], Numbers] = {}
    finish = member.Member.finish

    def keep(self):
        result = finish(self)
        tensors = {name: tensor.clone() for name, tensor in self.state.tensors().items()}
        states[Path(self.run.path).name, self._ranks.rank] = tensors
        return result

    with mock.patch.object(member.Member, "finish", keep):
        yield states
