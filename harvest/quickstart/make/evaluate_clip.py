"""Tests a model folder on packed pictures: zero-shot accuracy and name retrieval on each split.

    python evaluate_clip.py [MODEL_DIR] [IMAGES_DIR] [--limit N]

By default the embedded model and pictures. Through open_clip's own loader, tokenizer and preprocessing. A picture's
subgroup is the nearest of the 98 subgroup prompts, its group that subgroup's; a picture without a skin tone is also
looked up among the names of all emoji. The training pictures are a sample of 1,500.
"""

import argparse
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from clip_data import CONCEPT_HOLDOUT, STYLE_HOLDOUT, TRAIN, words_of
from PIL import Image
from torch import Tensor

_HERE = Path(__file__).parent.parent
_TRAIN_SAMPLE = 1500
_LOSS_BATCH = 256
_BATCH = 256


@dataclass(frozen=True)
class Sample:
    """One packed picture."""

    image: bytes
    said: dict[str, Any]


def main() -> None:
    """Print a line a split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=_HERE / "model")
    parser.add_argument("images", type=Path, nargs="?", default=_HERE / "images")
    parser.add_argument("--limit", type=int, help="pictures a split")
    given = parser.parse_args()
    source = f"local-dir:{given.model}"
    model, _, preprocess = open_clip.create_model_and_transforms(source)
    model.eval()
    (bpe_path,) = given.model.glob("bpe_*.txt.gz")
    tokenize = open_clip.get_tokenizer(source, bpe_path=str(bpe_path))
    samples = read_tars(given.images)
    subgroups = sorted({sample.said["label"] for sample in samples})
    group_of = {sample.said["label"]: sample.said["group"] for sample in samples}
    name_of = {s.said["emoji"]: _plain_name(s.said) for s in samples}
    emoji = sorted(name_of)
    with torch.inference_mode():
        prompts = model.encode_text(tokenize([words_of(s) for s in subgroups]), normalize=True)
        names = torch.cat(
            [model.encode_text(tokenize(part), normalize=True) for part in _parts([name_of[e] for e in emoji])]
        )
        for split in (STYLE_HOLDOUT, CONCEPT_HOLDOUT, TRAIN):
            chosen = [sample for sample in samples if sample.said["split"] == split]
            limit = min(given.limit or len(chosen), _TRAIN_SAMPLE if split == TRAIN else len(chosen))
            order = np.random.default_rng(0).permutation(len(chosen))[:limit].tolist()
            chosen = [chosen[i] for i in order]
            images = embed(model, preprocess, chosen)
            found = (images @ prompts.T).argmax(1).tolist()
            right = [subgroups[f] == s.said["label"] for f, s in zip(found, chosen, strict=True)]
            right_group = [group_of[subgroups[f]] == s.said["group"] for f, s in zip(found, chosen, strict=True)]
            plain = [i for i, s in enumerate(chosen) if s.said["tone"] == 0]
            nearest = (images[plain] @ names.T).topk(5).indices
            wanted = torch.tensor([emoji.index(chosen[i].said["emoji"]) for i in plain])[:, None]
            hits = nearest == wanted  # (plain, 5)
            print(
                f"{split}: {len(chosen):,} pictures, subgroup {np.mean(right):.3f}, group {np.mean(right_group):.3f}, "
                f"name R@1 {hits[:, :1].any(1).float().mean():.3f}, R@5 {hits.any(1).float().mean():.3f} "
                f"({len(plain):,} without a tone)" + _loss_text(model, tokenize, images, chosen),
                flush=True,
            )


def read_tars(folder: Path) -> list[Sample]:
    """Every picture of the tars with its sidecar."""
    samples = []
    for path in sorted(folder.glob("*.tar.gz")):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        samples += [
            Sample(data, json.loads(files[name.replace(".webp", ".json")]))
            for name, data in files.items()
            if name.endswith(".webp")
        ]
    return samples


def embed(model: Any, preprocess: Any, samples: list[Sample]) -> Tensor:
    """Unit image embeddings `(n, embed_dim)`."""
    parts = []
    for part in _parts(samples):
        pixels = torch.stack([preprocess(Image.open(io.BytesIO(sample.image)).convert("RGB")) for sample in part])
        parts.append(model.encode_image(pixels, normalize=True))
    return torch.cat(parts)


def contrastive_loss(model: Any, tokenize: Any, images: Tensor, samples: list[Sample]) -> float:
    """Mean symmetric InfoNCE over whole batches of 256 pictures with their own captions; equal captions all match."""
    losses = []
    for start in range(0, len(samples) - _LOSS_BATCH + 1, _LOSS_BATCH):
        said = [sample.said["caption"] for sample in samples[start : start + _LOSS_BATCH]]
        text = model.encode_text(tokenize(said), normalize=True)
        logits = model.logit_scale.exp() * images[start : start + _LOSS_BATCH] @ text.T
        same = torch.tensor([[a == b for b in said] for a in said]).float()
        target = same / same.sum(1, keepdim=True)
        losses.append(
            -((target * F.log_softmax(logits, 1)).sum(1) + (target * F.log_softmax(logits, 0)).sum(0)).mean() / 2
        )
    return float(torch.stack(losses).mean())


def _loss_text(model: Any, tokenize: Any, images: Tensor, samples: list[Sample]) -> str:
    if len(samples) < _LOSS_BATCH:
        return ""
    return f", contrastive loss of {_LOSS_BATCH} {contrastive_loss(model, tokenize, images, samples):.3f}"


def _plain_name(said: dict[str, Any]) -> str:
    """A caption without its skin tone."""
    return str(said["caption"]).split(": ")[0] if said["tone"] else str(said["caption"])


def _parts(values: list[Any]) -> list[list[Any]]:
    return [values[start : start + _BATCH] for start in range(0, len(values), _BATCH)]


if __name__ == "__main__":
    main()
