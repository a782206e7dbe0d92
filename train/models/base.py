"""What every SAE variant shares: its weights, its input scaling, its file.

Shapes: n rows, d_in inputs, d_sae features.

    x     (n, d_in)      activations as stored
    z     (n, d_in)      scaled input, (x - input_mean) / input_scale
    f     (n, d_sae)     feature activations, select((z - b_dec) W_enc + b_enc)
    x_hat (n, d_in)      (f W_dec + b_dec) * input_scale + input_mean
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ...store.errors import StoreError
from ...store.files import write_atomically
from ..features import SparseFeatures

FORMAT = "thresher-sae"
FORMAT_VERSION = 1
METADATA_KEY = "thresher"
WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")
SCALING = ("input_mean", "input_scale")

_VARIANTS: dict[str, type["SparseAutoencoder"]] = {}


class SparseAutoencoder(ABC):
    """A trained or training SAE.

    Both weight matrices are kept feature-major, `encoder` and `decoder` (d_sae, d_in), contiguous: dead features,
    sparse products, the projection, Adam and the unit norm are then operations on rows. `W_enc` and `W_dec` are their
    views in the published orientation.

    Parameters
    ----------
    encoder, decoder
        `(d_sae, d_in)`.
    b_enc, b_dec
        `(d_sae,)`, `(d_in,)`. `b_dec` is in the scaled space of z.
    input_mean, input_scale
        `(d_in,)`; 0 and 1 where not given.
    """

    variant: ClassVar[str]

    def __init_subclass__(cls) -> None:
        _VARIANTS[cls.variant] = cls

    def __init__(
        self,
        encoder: Tensor,
        b_enc: Tensor,
        decoder: Tensor,
        b_dec: Tensor,
        input_mean: Tensor | None = None,
        input_scale: Tensor | None = None,
    ) -> None:
        d_sae, d_in = encoder.shape
        for name, tensor, shape in (
            ("W_dec", decoder, (d_sae, d_in)),
            ("b_enc", b_enc, (d_sae,)),
            ("b_dec", b_dec, (d_in,)),
            ("input_mean", input_mean, (d_in,)),
            ("input_scale", input_scale, (d_in,)),
        ):
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; W_enc (d_in, d_sae) needs {shape}")
        self.encoder = encoder.contiguous()
        self.b_enc = b_enc.contiguous()
        self.decoder = decoder.contiguous()
        self.b_dec = b_dec.contiguous()
        self.input_mean = torch.zeros_like(b_dec) if input_mean is None else input_mean
        self.input_scale = torch.ones_like(b_dec) if input_scale is None else input_scale

    @property
    def d_in(self) -> int:
        """Inputs."""
        return self.encoder.shape[1]

    @property
    def d_sae(self) -> int:
        """Features."""
        return self.encoder.shape[0]

    @property
    def W_enc(self) -> Tensor:
        """`(d_in, d_sae)`, a view."""
        return self.encoder.T

    @property
    def W_dec(self) -> Tensor:
        """`(d_sae, d_in)`."""
        return self.decoder

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and of everything computed with them."""
        return self.encoder.dtype

    def __repr__(self) -> str:
        settings = "".join(f", {k}={v}" for k, v in self.settings().items())
        return f"{type(self).__name__}(d_in={self.d_in}, d_sae={self.d_sae}{settings})"

    # What a variant defines

    def settings(self) -> dict[str, Any]:
        """The variant's own numbers, as written to the file."""
        return {}

    @abstractmethod
    def select(self, pre: Tensor) -> Tensor:
        """Feature activations (n, d_sae) from pre-activations (n, d_sae), which may be overwritten."""

    @abstractmethod
    def encode_sparse(self, x: Tensor, *, tile: int = 4096) -> SparseFeatures:
        """`encode` without zeros and without an (n, d_sae) buffer: `tile` features at a time."""

    # What they share

    def scale(self, x: Tensor) -> Tensor:
        """Scaled input z of activations x; any float type, moved to the weights' type and device."""
        x = x.to(device=self.device, dtype=self.dtype)
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise ValueError(f"activations of shape {tuple(x.shape)} do not fit an SAE of d_in = {self.d_in}")
        return (x - self.input_mean) / self.input_scale

    def unscale(self, z_hat: Tensor) -> Tensor:
        """Activations from the scaled space."""
        return z_hat * self.input_scale + self.input_mean

    def encode(self, x: Tensor) -> Tensor:
        """Feature activations `(n, d_sae)` of activations `(n, d_in)`."""
        return self.select(torch.addmm(self.b_enc, self.scale(x) - self.b_dec, self.encoder.T))

    def decode(self, f: Tensor) -> Tensor:
        """Reconstruction `(n, d_in)` from feature activations `(n, d_sae)`."""
        return self.unscale(torch.addmm(self.b_dec, f, self.decoder))

    def decode_sparse(self, f: SparseFeatures) -> Tensor:
        """Reconstruction `(n, d_in)` from sparse feature activations."""
        return self.unscale(f.pairs().times(self.decoder) + self.b_dec)

    def __call__(self, x: Tensor) -> Tensor:
        """Reconstruction `(n, d_in)` of activations `(n, d_in)`."""
        return self.decode(self.encode(x))

    def pre_activation_tiles(self, x: Tensor, tile: int) -> Iterator[tuple[int, Tensor]]:
        """First feature and pre-activations `(n, <= tile)` of each run of `tile` features."""
        if tile < 1:
            raise ValueError(f"tile {tile} must be at least 1 feature")
        centred = self.scale(x) - self.b_dec
        for start in range(0, self.d_sae, tile):
            stop = start + tile
            yield start, torch.addmm(self.b_enc[start:stop], centred, self.encoder[start:stop].T)

    def tensors(self) -> dict[str, Tensor]:
        """Weights and scaling by their published names, W_enc `(d_in, d_sae)`."""
        return {
            "W_enc": self.W_enc,
            "b_enc": self.b_enc,
            "W_dec": self.W_dec,
            "b_dec": self.b_dec,
            "input_mean": self.input_mean,
            "input_scale": self.input_scale,
        }

    def parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The trained tensors: encoder, b_enc, decoder, b_dec."""
        return self.encoder, self.b_enc, self.decoder, self.b_dec

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Give this SAE on another device or in another type."""
        return type(self).from_tensors(
            {k: v.to(device=device, dtype=dtype) for k, v in self.tensors().items()}, self.settings()
        )

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Self:
        """An SAE of published tensors (`tensors`) and the variant's own numbers (`settings`)."""
        return cls(
            tensors["W_enc"].T,
            tensors["b_enc"],
            tensors["W_dec"],
            tensors["b_dec"],
            tensors.get("input_mean"),
            tensors.get("input_scale"),
            **settings,
        )

    def metadata(self) -> dict[str, Any]:
        """What the file says beside the tensors."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "variant": self.variant,
            "settings": self.settings(),
        }

    def save(self, path: Path | str) -> None:
        """Write the weights as safetensors, in one step: the file is whole or not there."""
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.tensors().items()}
        # One metadata entry: safetensors orders several as its hash map falls, and equal runs must give equal files.
        write_atomically(
            Path(path), to_safetensors(tensors, {METADATA_KEY: json.dumps(self.metadata(), sort_keys=True)})
        )


def load_sae(path: Path | str, device: torch.device | str = "cpu") -> SparseAutoencoder:
    """Load the SAE of a run directory or of a safetensors file.

    `StoreError` where there is none, or the file is not one of ours or is damaged.
    """
    path = Path(path)
    if path.is_dir():
        run_path, path = path, path / "sae.safetensors"
        if not path.exists():
            raise StoreError(_why_no_weights(run_path))
    if not path.is_file():
        raise StoreError(f"{path} does not exist: give a run directory or its sae.safetensors.")
    metadata, tensors = _read(path, str(device))
    if metadata.get("format_version") != FORMAT_VERSION or metadata.get("variant") not in _VARIANTS:
        raise StoreError(
            f"{path} is version {metadata.get('format_version')} of variant {metadata.get('variant')!r}; this thresher "
            f"reads version {FORMAT_VERSION} of {', '.join(sorted(_VARIANTS))}."
        )
    missing = [name for name in WEIGHTS + SCALING if name not in tensors]
    if missing:
        raise StoreError(f"{path} holds no {missing[0]}: it is not a whole SAE.")
    try:
        return _VARIANTS[metadata["variant"]].from_tensors(tensors, metadata["settings"])
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path} does not fit together: {error}") from error


def _why_no_weights(run_path: Path) -> str:
    if (run_path / "config.json").exists():
        return f"{run_path} holds no sae.safetensors: its training did not finish. Go on with `train --resume`."
    return f"{run_path} is not a run directory: it holds neither config.json nor sae.safetensors."


def _read(path: Path, device: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device=device) as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
                raise StoreError(f"{path} is a safetensors file, but not an SAE that thresher wrote.")
            return metadata, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise StoreError(f"{path} cannot be read as safetensors ({error}): it is damaged or another format.") from error
