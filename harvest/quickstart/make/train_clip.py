"""Trains the small CLIP model from scratch on the drawings.

    python train_clip.py DRAWINGS_DIR RUN_DIR --steps 2312      65 minutes on two cores; the same command resumes

Symmetric contrastive loss in which every picture of the same emoji is a match, and 0.3 times the cross-entropy over the
subgroups' prompts. A step averages the gradients of `--micro-batches` batches. With a seed and a number of threads the
run repeats.
"""

import argparse
import copy
import json
import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from clip_data import (
    TRAIN,
    augment,
    captions,
    encode_text,
    load_drawings,
    split_pictures,
    tokenizer,
    words_of,
    write_bpe,
)
from open_clip.model import CLIP
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

MODEL_FOLDER = Path(__file__).parent.parent / "model"
MEAN = STD = 0.5  # of the pixels while training; `export_clip.py` folds them into the weights
_PEAK_LR, _END_LR_SHARE, _WARMUP_STEPS = 1.2e-3, 0.01, 200
_WEIGHT_DECAY, _BETAS = 0.1, (0.9, 0.98)
_SUBGROUP_LOSS = 0.3
_TONED_WEIGHT = 0.4  # five tones of one hand are one idea: drawn less often than a picture without a tone
_PATCH_DROPOUT, _FULL_SHARE = 0.5, 0.15  # half of the patches, but in the last 15 % of the steps
_AVERAGE_DECAY = 0.998
_LONGEST_CAPTION = 20  # tokens; above, the plain name is taken
_MAX_LOGIT_SCALE = math.log(100)
_SAVE_EVERY, _LOG_EVERY = 100, 20


@dataclass
class Data:
    """What a step draws from; P training drawings of H emoji, S subgroups, L tokens."""

    rgba: Tensor
    """`(P, 64, 64, 4)`, uint8."""
    emoji: Tensor
    """`(P,)`."""
    subgroup: Tensor
    """`(P,)`."""
    weight: Tensor
    """`(P,)`: how often a drawing is drawn."""
    captions: Tensor
    """`(H, 12, L)` tokens."""
    prompts: Tensor
    """`(S, L)` tokens."""


def main() -> None:
    """Train, or go on with a training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drawings", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=2312)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--micro-batches", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.run.mkdir(parents=True, exist_ok=True)
    model_cfg = json.loads((MODEL_FOLDER / "open_clip_config.json").read_text())["model_cfg"]
    data = load_data(given.drawings, given.run, model_cfg)
    # CPU flash attention's backward is 1.6 times slower at 17 tokens
    with sdpa_kernel([SDPBackend.MATH]):
        train(data, model_cfg, given)


def load_data(drawings: Path, run: Path, model_cfg: dict[str, Any]) -> Data:
    """Read the drawings and tokenize every caption."""
    rgba, pictures = load_drawings(drawings)
    write_bpe(run / "bpe.txt.gz", model_cfg["text_cfg"]["vocab_size"])
    tokenize = tokenizer(model_cfg, run / "bpe.txt.gz")
    kept = [i for i, split in enumerate(split_pictures(pictures)) if split == TRAIN]
    first = {picture.code: picture for picture in reversed(pictures)}
    codes, subgroups = sorted(first), sorted({picture.subgroup for picture in pictures})
    rng = random.Random(1)
    tokens = torch.stack([tokenize(captions(first[code], rng)) for code in codes])  # (H, 12, L)
    is_long = (tokens != 0).sum(-1) > _LONGEST_CAPTION
    return Data(
        rgba=torch.from_numpy(rgba[kept]),
        emoji=torch.tensor([codes.index(pictures[i].code) for i in kept]),
        subgroup=torch.tensor([subgroups.index(pictures[i].subgroup) for i in kept]),
        weight=torch.tensor([_TONED_WEIGHT if pictures[i].tone else 1.0 for i in kept]),
        captions=torch.where(is_long[..., None], tokens[:, :1], tokens),
        prompts=tokenize([words_of(subgroup) for subgroup in subgroups]),
    )


def train(data: Data, model_cfg: dict[str, Any], given: argparse.Namespace) -> None:
    """Run every step that is left; RUN_DIR/state.pt holds the model, its average and the optimiser."""
    torch.manual_seed(given.seed)
    vision = model_cfg["vision_cfg"] | {"patch_dropout": _PATCH_DROPOUT}
    model = CLIP(model_cfg["embed_dim"], vision, model_cfg["text_cfg"])
    average = copy.deepcopy(model).eval().requires_grad_(False)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=_PEAK_LR, betas=_BETAS)
    path, first = given.run / "state.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
        print(f"resumed at step {first}")
    model.train()
    started_s, losses = time.monotonic(), []
    for step in range(first, given.steps):
        progress = step / given.steps
        if progress >= 1 - _FULL_SHARE:
            model.visual.patch_dropout = torch.nn.Identity()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, given.steps)
        optimiser.zero_grad(set_to_none=True)
        # Each step draws from its own generator, so that a resumed run draws what an unbroken one does.
        generator = torch.Generator().manual_seed(given.seed * 1_000_003 + step)
        torch.manual_seed(given.seed * 1_000_003 + step)  # patch dropout draws from the global one
        for _ in range(given.micro_batches):
            loss = batch_loss(model, data, given.batch_size, generator)
            (loss / given.micro_batches).backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
            decay = min(_AVERAGE_DECAY, (step + 1) / (step + 20))
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        done = step + 1
        if done % _LOG_EVERY == 0 or done == given.steps:
            per_s = (done - first) * given.batch_size * given.micro_batches / (time.monotonic() - started_s)
            print(f"step {done} loss {np.mean(losses):.3f} {per_s:.0f} pictures/s", flush=True)
            losses.clear()
        if done % _SAVE_EVERY == 0 or done == given.steps:
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save({**state, "step": done}, given.run / "state.pt.part")
            os.replace(given.run / "state.pt.part", path)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to 1 % of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return _PEAK_LR * min(1.0, (step + 1) / _WARMUP_STEPS) * (_END_LR_SHARE + (1 - _END_LR_SHARE) * cosine)


def batch_loss(model: CLIP, data: Data, batch_size: int, generator: torch.Generator) -> Tensor:
    """Loss of one batch of drawings, each with one of its emoji's captions."""
    drawn = torch.multinomial(data.weight, batch_size, generator=generator)
    images = (augment(data.rgba[drawn], generator) - MEAN) / STD  # (batch, 3, 64, 64)
    which = torch.randint(0, data.captions.shape[1], (batch_size,), generator=generator)
    emoji = data.emoji[drawn]
    with torch.autocast("cpu", torch.bfloat16):
        image = model.encode_image(images, normalize=True)
        text = encode_text(model, data.captions[emoji, which])
        prompt = encode_text(model, data.prompts)
    scale = model.logit_scale.exp()
    logits = scale * image.float() @ text.float().T  # (batch, batch)
    same = (emoji[:, None] == emoji[None]).float()
    target = same / same.sum(1, keepdim=True)
    contrastive = -((target * logits.log_softmax(1)).sum(1) + (target * logits.log_softmax(0)).sum(0)).mean() / 2
    subgroup_logits = scale * image.float() @ prompt.float().T  # (batch, S)
    return contrastive + _SUBGROUP_LOSS * F.cross_entropy(subgroup_logits, data.subgroup[drawn])


if __name__ == "__main__":
    main()
