"""Tiny towers and picture sources."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}
# not OpenAI's, so that a config whose preprocessing is dropped shows
TINY_PREPROCESSING = {"mean": [0.3, 0.4, 0.5], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear"}


class TinyModels:
    """Writes model folders."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, name="tiny", *, weights=True, seed=1, preprocessing=TINY_PREPROCESSING, **changes) -> Path:
        folder = self._root / name
        folder.mkdir(parents=True, exist_ok=True)
        config = TINY | changes
        document = {"model_cfg": config, "preprocess_cfg": preprocessing}
        (folder / "open_clip_config.json").write_text(json.dumps(document))
        if weights:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = open_clip.model.CLIP(**config)
            save_file(model.state_dict(), folder / "open_clip_model.safetensors")
        return folder


@pytest.fixture
def models(tmp_path) -> TinyModels:
    return TinyModels(tmp_path / "models")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return TinyModels(tmp_path_factory.mktemp("models")).write()


class Pictures:
    """Makes pictures and sources of them."""

    def picture(self, seed=0, size=(40, 36), mode="RGB") -> Image.Image:
        shape = (size[1], size[0], {"RGB": 3, "RGBA": 4, "CMYK": 4}[mode])
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode=mode)

    def encoded(self, seed=0, suffix="png", **how) -> bytes:
        buffer = io.BytesIO()
        kind = {"jpg": "JPEG"}.get(suffix, suffix.upper())
        self.picture(seed).save(buffer, kind, **how)
        return buffer.getvalue()

    def class_folders(self, root: Path, n_per_class=4, classes=("n01440764", "n01443537", "zebra")) -> Path:
        for c, name in enumerate(classes):
            (root / name).mkdir(parents=True)
            for i in range(n_per_class):
                (root / name / f"{i}.png").write_bytes(self.encoded(100 * c + i))
        return root

    def tar(self, path: Path, members: dict[str, bytes], mode="w") -> Path:
        with tarfile.open(path, mode) as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path


@pytest.fixture
def pictures() -> Pictures:
    return Pictures()


@pytest.fixture
def remove_tree():
    return shutil.rmtree
