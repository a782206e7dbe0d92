"""The image tower of an open_clip model, with its own preprocessing.

Shapes: n images, height x width pixels of the tower's input.
"""

import copy
import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..devices import choose_device
from .checkpoints import checkpoint_shapes, load_error
from .hub import quiet_logging
from .weights import ModelSource, resolve_model

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class PixelTransform:
    """The part of a tower's preprocessing that works on pictures: resize and crop, to 8-bit pixels.

    What is left, division by 255 and normalisation, is done for a whole batch on the device (`Tower.normalise`), with
    the same arithmetic. A worker then hands over a quarter of the bytes.
    """

    def __init__(self, preprocess: Any) -> None:
        from torchvision.transforms import Normalize, ToTensor

        *self._steps, to_tensor, normalise = preprocess.transforms
        assert isinstance(to_tensor, ToTensor)
        assert isinstance(normalise, Normalize)

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """Pixels of an RGB image, `(height, width, 3)`."""
        for step in self._steps:
            image = step(image)
        return np.asarray(image)


@dataclass(frozen=True)
class Tower:
    """An image tower on its device, ready to be read."""

    visual: nn.Module
    """open_clip's `VisionTransformer`, in evaluation mode."""
    name: str
    pretrained: str
    """Tag, checkpoint path, or `none` for random weights."""
    weights_sha256: str
    """Of the image tower's tensors as loaded: names, dtypes, shapes, bytes."""
    quick_gelu: bool
    preprocessing: dict[str, Any]
    """open_clip's preprocessing config, as JSON holds it: size, mean, std, interpolation, resize_mode, ..."""
    preprocess: Any = field(repr=False)
    """open_clip's own transform: an RGB picture to `(3, height, width)` float32."""
    precision: str = "fp32"
    notes: tuple[str, ...] = ()

    @property
    def blocks(self) -> nn.ModuleList:
        """The residual blocks."""
        return self.visual.transformer.resblocks  # type: ignore[union-attr, return-value]

    @property
    def n_layers(self) -> int:
        """Number of residual blocks."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """Length of a residual vector."""
        return int(self.visual.transformer.width)  # type: ignore[union-attr, arg-type]

    @property
    def device(self) -> torch.device:
        """Where the tower's weights are."""
        return next(self.visual.parameters()).device

    @property
    def pixels(self) -> PixelTransform:
        """The first part of the preprocessing, for workers."""
        return PixelTransform(self.preprocess)

    def normalise(self, pixels: Tensor) -> Tensor:
        """The second part of the preprocessing.

        Parameters
        ----------
        pixels
            `(n, height, width, 3)`, uint8, on any device.

        Returns
        -------
        images
            `(n, 3, height, width)`, float32, on the tower's device; equal to `preprocess` on each picture.
        """
        images = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255)
        mean, std = (
            torch.as_tensor(self.preprocessing[key], dtype=torch.float32, device=self.device).view(-1, 1, 1)
            for key in ("mean", "std")
        )
        return images.sub_(mean).div_(std)

    def at_precision(self, precision: str) -> "Tower":
        """A copy of this fp32 tower that computes in bf16 or fp16; fp32 gives the tower itself.

        Matrix products run in the short format, under torch's autocast; the residual stream and the layer norms stay in
        fp32, which keeps the rows closer to fp32 than a tower cast as a whole.
        """
        if precision == "fp32":
            return self
        dtype = _AUTOCAST[precision]
        visual = copy.deepcopy(self.visual)
        for module in visual.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(dtype)  # once, where autocast would do it every batch
        return Tower(**{**self.__dict__, "visual": visual, "precision": precision})

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """What the tower's forward pass must run in."""
        with torch.inference_mode():
            if self.precision == "fp32" and self.device.type == "cuda":
                # torch lets cuDNN round the patch embedding's inputs to TF32's 10 bits unless told otherwise
                cudnn = torch.backends.cudnn
                with cudnn.flags(cudnn.enabled, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False):
                    yield
            elif self.precision == "fp32":
                yield
            else:
                with torch.autocast(self.device.type, _AUTOCAST[self.precision]):
                    yield


@dataclass(frozen=True)
class LoadedClip:
    """A whole open_clip model, on the CPU, in fp32."""

    model: nn.Module
    source: ModelSource
    preprocessing: dict[str, Any]


def load_clip(
    model: str, pretrained: str | None = None, *, seed: int = 0, allow_activation_mismatch: bool = False
) -> LoadedClip:
    """Load an open_clip model with both its towers. The parameters and errors are `load_tower`'s."""
    source = resolve_model(model, pretrained, allow_activation_mismatch=allow_activation_mismatch)
    clip = _build(source, seed)
    if source.checkpoint is not None:
        _load_weights(clip, source)
    preprocessing = json.loads(json.dumps(clip.visual.preprocess_cfg))  # type: ignore[union-attr]
    return LoadedClip(clip.eval(), source, preprocessing)


def load_tower(
    model: str,
    pretrained: str | None = None,
    device: str = "cpu",
    *,
    precision: str = "fp32",
    seed: int = 0,
    allow_activation_mismatch: bool = False,
) -> Tower:
    """Load the image tower of an open_clip model.

    Parameters
    ----------
    model, pretrained, allow_activation_mismatch
        See `weights.resolve_model`.
    device
        A torch device, or `auto`: cuda, then mps, then cpu.
    precision
        fp32, bf16 or fp16; see `Tower.at_precision`.
    seed
        Of the random weights of `pretrained="none"`.

    Raises
    ------
    ValueError
        As `resolve_model`; and when the checkpoint is not one of this model.
    FileNotFoundError, ConnectionError
        As `resolve_model`.
    """
    clip = load_clip(model, pretrained, seed=seed, allow_activation_mismatch=allow_activation_mismatch)
    return tower_of(clip, device).at_precision(precision)


def tower_of(clip: LoadedClip, device: str = "cpu") -> Tower:
    """The image tower of a loaded model, in fp32: its own modules, moved to the device, without gradients."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    visual = clip.model.visual
    assert isinstance(visual, nn.Module)
    return Tower(
        visual=visual.requires_grad_(False).to(choose_device(device)),
        name=clip.source.name,
        pretrained=clip.source.pretrained,
        weights_sha256=weights_sha256(visual),
        quick_gelu=clip.source.quick_gelu,
        preprocessing=clip.preprocessing,
        preprocess=image_transform_v2(PreprocessCfg(**clip.preprocessing), is_train=False),
        notes=tuple(clip.source.notes),
    )


def weights_sha256(visual: nn.Module) -> str:
    """Digest of a module's tensors: names, dtypes, shapes and bytes, in order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(visual.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _build(source: ModelSource, seed: int) -> nn.Module:
    """The model of a config, with random weights drawn from the seed."""
    import open_clip

    # open_clip reads a config with its preprocessing by this route only; `add_model_config` drops the preprocessing
    with tempfile.TemporaryDirectory(prefix="thresher-model-") as folder:
        config = {"model_cfg": source.config, "preprocess_cfg": _preprocessing_only(source.preprocessing)}
        (Path(folder) / "open_clip_config.json").write_text(json.dumps(config))
        with quiet_logging(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                clip: nn.Module = open_clip.create_model("local-dir:" + folder, pretrained_text=False)
            except (TypeError, KeyError, AssertionError, RuntimeError) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise ValueError(f"open_clip cannot build {source.name} from its config ({reason}).") from error
    return clip


def _load_weights(clip: nn.Module, source: ModelSource) -> None:
    import open_clip

    path = source.checkpoint
    assert path is not None
    shapes = checkpoint_shapes(path)
    # open_clip would resize position embeddings of another image size in silence: other activations than the model's
    for name, tensor in clip.state_dict().items():
        if name.endswith("positional_embedding") and name in shapes and shapes[name] != tensor.shape:
            raise ValueError(
                f"{path} does not hold the weights of {source.name}: {name} is {list(shapes[name])}, the model's is "
                f"{list(tensor.shape)} (another image size, patch size or context length)."
            )
    try:
        with quiet_logging():
            open_clip.load_checkpoint(clip, str(path), strict=True, weights_only=True)
    except RuntimeError as error:
        raise load_error(path, source.name, error) from error


def _preprocessing_only(said: dict[str, Any]) -> dict[str, Any]:
    from open_clip.transform import merge_preprocess_dict

    return merge_preprocess_dict({}, said)
