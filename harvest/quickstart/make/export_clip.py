"""Exports a trained model as the folder that open_clip and `--model` load.

    python export_clip.py RUN_DIR MODEL_DIR

The mean and deviation that the pixels were scaled with are folded into the first layer, so that the exported model
wants OpenAI's, which open_clip falls back to where a checkpoint is loaded without its config. The fold is exact but for
rounding; the weights are then stored in fp16.
"""

import argparse
import json
from pathlib import Path

import torch
from clip_data import write_bpe
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import save_file
from torch import Tensor
from train_clip import MEAN, MODEL_FOLDER, STD


def main() -> None:
    """Write config, weights and byte-pair merges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    model_cfg = json.loads((MODEL_FOLDER / "open_clip_config.json").read_text())["model_cfg"]
    state = torch.load(given.run / "state.pt", weights_only=True)
    weights = fold_pixel_scaling({name: value.float() for name, value in state["average"].items()})
    given.out.mkdir(parents=True, exist_ok=True)
    halves = {name: value.half().contiguous() for name, value in weights.items()}
    save_file(halves, given.out / "open_clip_model.safetensors")
    config = {
        "model_cfg": model_cfg,
        "preprocess_cfg": {
            "mean": list(OPENAI_DATASET_MEAN),
            "std": list(OPENAI_DATASET_STD),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    (given.out / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    vocab_size = model_cfg["text_cfg"]["vocab_size"]
    write_bpe(given.out / f"bpe_{vocab_size}.txt.gz", vocab_size)
    for path in sorted(given.out.iterdir()):
        print(f"{path}: {path.stat().st_size:,} bytes")
    print(f"step {state['step']}")


def fold_pixel_scaling(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that want OpenAI's pixel scaling in place of `MEAN` and `STD`.

    With x the pixels, (x - MEAN) / STD = z s / STD + (m - MEAN) / STD for z = (x - m) / s. The first layer has no bias:
    its constant part goes into the positional embedding of every patch.
    """
    mean, std = torch.tensor(OPENAI_DATASET_MEAN), torch.tensor(OPENAI_DATASET_STD)
    kernel = weights["visual.conv1.weight"]  # (width, 3, patch, patch)
    constant = kernel.sum((2, 3)) @ ((mean - MEAN) / STD)  # (width,)
    positions = weights["visual.positional_embedding"].clone()  # (1 + patches, width), the class token first
    positions[1:] += constant
    return weights | {
        "visual.conv1.weight": kernel * (std / STD).view(1, 3, 1, 1),
        "visual.positional_embedding": positions,
    }


if __name__ == "__main__":
    main()
