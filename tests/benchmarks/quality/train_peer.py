"""Trains one SAE of another library on given batches; prints its L0 and explained variance as JSON.

Rows, batches, width, learning rate and its course are those of Thresher's runs. What a library fixes stays as it is.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "step")]

WARMUP = 100

Code = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From rows (n, d): feature activations (n, F) and reconstruction (n, d), as the library gives them after training."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What an SAE is trained on, and how.

    Parameters
    ----------
    setting
        Of the variant: k, or the coefficient of its penalty.
    batches
        `(steps, batch)`, places in `z` of each step's rows.
    z
        `(n, d)`.
    decay
        Share of the steps over which the rate falls.
    prefixes
        Features of each prefix of a Matryoshka SAE.
    """

    variant: str
    setting: float
    batches: np.ndarray
    z: torch.Tensor
    d_sae: int
    lr: float
    decay: float
    prefixes: list[int]

    def rate(self, step: int) -> float:
        """Share of the peak learning rate: linear warm-up, linear fall over the last `decay` of the steps."""
        steps = len(self.batches)
        return min(1.0, (step + 2) / WARMUP) * min(1.0, (steps - step) / (self.decay * steps))


def saelens(t: Training) -> Code:
    """Train by SAELens's `SAETrainer`."""
    from sae_lens import SAETrainer
    from sae_lens import saes as s
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    shared: dict[str, Any] = {"d_in": t.z.shape[1], "d_sae": t.d_sae}
    if t.variant == "relu":
        sae: Any = s.StandardTrainingSAE(s.StandardTrainingSAEConfig(l1_coefficient=t.setting, **shared))
    elif t.variant == "gated":
        sae = s.GatedTrainingSAE(s.GatedTrainingSAEConfig(l1_coefficient=t.setting, **shared))
    elif t.variant == "jumprelu":
        sae = s.JumpReLUTrainingSAE(s.JumpReLUTrainingSAEConfig(l0_coefficient=t.setting, **shared))
    elif t.variant == "topk":
        sae = s.TopKTrainingSAE(s.TopKTrainingSAEConfig(k=int(t.setting), use_sparse_activations=False, **shared))
    elif t.variant == "batchtopk":
        sae = s.BatchTopKTrainingSAE(s.BatchTopKTrainingSAEConfig(k=t.setting, **shared))
    else:
        sae = s.MatryoshkaBatchTopKTrainingSAE(
            s.MatryoshkaBatchTopKTrainingSAEConfig(k=t.setting, matryoshka_widths=t.prefixes, **shared)
        )
    steps, batch = t.batches.shape
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * batch,
            train_batch_size_samples=batch,
            lr=t.lr,
            lr_end=0.0,
            device="cpu",
            autocast=False,
            n_checkpoints=0,
            checkpoint_path=None,
            save_final_checkpoint=False,
            adam_beta1=0.9,
            adam_beta2=0.999,
            lr_scheduler_name="constant",
            lr_warm_up_steps=WARMUP,
            lr_decay_steps=round(t.decay * steps),
            n_restart_cycles=1,
            dead_feature_window=150,
            feature_sampling_window=10**9,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=iter(()),
    )
    for chosen in t.batches:
        trainer._train_step(sae=sae, sae_in=t.z[chosen])
        trainer.n_training_steps += 1

    def code(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if t.variant in ("batchtopk", "matryoshka"):  # what it is saved as: a threshold for all features
            pre = (rows - sae.b_dec * sae.cfg.apply_b_dec_to_input) @ sae.W_enc + sae.b_enc
            if sae.cfg.rescale_acts_by_decoder_norm:
                norm = sae.W_dec.norm(dim=-1)
                f = torch.where(pre * norm > sae.topk_threshold, pre, 0.0).relu()
            else:
                f = torch.where(pre > sae.topk_threshold, pre, 0.0).relu()
            return f, f @ sae.W_dec + sae.b_dec
        f = sae.encode(rows)
        return f, sae.decode(f)

    return code


def overcomplete(t: Training) -> Code:
    """Train by the body of overcomplete's `train_sae`."""
    import matplotlib as mpl

    if not hasattr(mpl.cm, "get_cmap"):  # its import needs what newer versions of matplotlib lack
        mpl.cm.get_cmap = mpl.colormaps.get_cmap
    from implementations import _without_imports

    _without_imports("timm", "cv2", "skimage", "torchvision")
    from overcomplete.sae.base import SAE
    from overcomplete.sae.batchtopk_sae import BatchTopKSAE
    from overcomplete.sae.jump_sae import JumpSAE
    from overcomplete.sae.losses import mse_l1
    from overcomplete.sae.topk_sae import TopKSAE

    d_in, batch = t.z.shape[1], t.batches.shape[1]
    penalty = 0.0
    if t.variant == "topk":
        model: Any = TopKSAE(d_in, t.d_sae, top_k=int(t.setting))
    elif t.variant == "batchtopk":
        model = BatchTopKSAE(d_in, t.d_sae, top_k=int(t.setting * batch))
    elif t.variant == "jumprelu":
        model, penalty = JumpSAE(d_in, t.d_sae), t.setting
    else:
        model, penalty = SAE(d_in, t.d_sae), t.setting
    optimizer = torch.optim.Adam(model.parameters(), lr=t.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, t.rate)
    model.train()
    for chosen in t.batches:
        x = t.z[chosen]
        optimizer.zero_grad()
        pre, codes, x_hat = model(x)
        loss = mse_l1(x, x_hat, pre, codes, model.get_dictionary(), penalty=penalty)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    model.eval()

    def code(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, codes, x_hat = model(rows)
        return codes, x_hat

    return code


LIBRARIES = {"SAELens": saelens, "overcomplete": overcomplete}


@torch.no_grad()
def measure(code: Code, z: torch.Tensor) -> dict[str, float]:
    """Mean L0 and explained variance over all of `z`, in float64."""
    active, sse = 0, 0.0
    for start in range(0, len(z), 1024):
        rows = z[start : start + 1024]
        f, x_hat = code(rows)
        active += int((f > 0).sum())
        sse += float((x_hat.double() - rows.double()).square().sum())
    sst = float((z.double() - z.double().mean(0)).square().sum())
    return {"l0": active / len(z), "ev": 1 - sse / sst}


def main() -> None:
    """Print a line for each setting and seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("variant")
    parser.add_argument("data", type=Path)
    parser.add_argument("--wanted", nargs="+", metavar="SETTING:SEED", required=True)
    parser.add_argument("--d-sae", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--decay", type=float, required=True)
    parser.add_argument("--prefixes", nargs="+", type=int, default=[])
    a = parser.parse_args()
    z = torch.from_numpy(np.load(a.data / "train.npy"))
    held_out = torch.from_numpy(np.load(a.data / "heldout.npy"))
    batches = np.load(a.data / "batches.npy")
    for wanted in a.wanted:
        setting, seed = float(wanted.partition(":")[0]), int(wanted.partition(":")[2])
        torch.manual_seed(seed)
        training = Training(
            variant=a.variant,
            setting=setting,
            batches=batches,
            z=z,
            d_sae=a.d_sae,
            lr=a.lr,
            decay=a.decay,
            prefixes=a.prefixes,
        )
        code = LIBRARIES[a.library](training)
        answer = {"setting": setting, "seed": seed, "train": measure(code, z), "heldout": measure(code, held_out)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
