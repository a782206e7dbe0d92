"""What every SAE variant shares: its weights, its scaling, its file.

Shapes: n rows, d_in inputs, d_out outputs (d_in, but for a transcoder), d_sae features.

    x     (n, d_in)      activations as stored
    z     (n, d_in)      scaled input, (x - input_mean) / input_scale
    f     (n, d_sae)     feature activations, select((z - b_dec) W_enc + b_enc)
    x_hat (n, d_out)     (f W_dec + b_dec) * output_scale + output_mean
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
from ..entries import Entries
from ..features import SparseFeatures
from ..objective import Block, Objective, Scored
from ..tiles import Tile, Tiles, exact_tiles

FORMAT = "thresher-sae"
FORMAT_VERSION = 1
METADATA_KEY = "thresher"
WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")
SCALING = ("input_mean", "input_scale")
OUTPUT_SCALING = ("output_mean", "output_scale")
_LAYER_NORM_EPS = 1e-5  # SAELens's, so that weights trained under either give the same activations

_VARIANTS: dict[str, type["SparseAutoencoder"]] = {}


class SparseAutoencoder(ABC):
    """A trained or training SAE, or transcoder.

    A transcoder reconstructs what passes at another site from what it reads (Dunefsky, Chlenski and Nanda 2024,
    arXiv:2406.11944), with the loss and the remedies of its variant.

    Both weight matrices are kept feature-major, `encoder` (d_sae, d_in) and `decoder` (d_sae, d_out), contiguous: dead
    features, sparse products, the projection, Adam and the unit norm are then operations on rows. `W_enc` and `W_dec`
    are their views in the published orientation.

    Parameters
    ----------
    encoder, decoder
        `(d_sae, d_in)`, `(d_sae, d_out)`.
    b_enc, b_dec
        `(d_sae,)`, `(d_out,)`. `b_dec` is in the scaled space of the output.
    input_mean, input_scale
        `(d_in,)`; 0 and 1 where not given.
    output_mean, output_scale
        `(d_out,)`, of a transcoder, whose output is another site's vectors; an SAE's are those of its input.
    centres_input
        Whether the encoder is given z - b_dec; else z.
    layer_norm, constant_norm
        Whether each row is first shifted to mean 0 and divided by its standard deviation (unbiased, plus 1e-5), or
        scaled to norm sqrt(d_in); its reconstruction undoes either.
    """

    variant: ClassVar[str]
    has_penalty: ClassVar[bool] = False
    """Whether its loss has a sparsity penalty, with a coefficient."""
    trained: ClassVar[tuple[str, ...]] = ()
    """Trained vectors of the variant beside the four of every SAE: attributes, and tensors of the file."""
    rates: ClassVar[dict[str, float]] = {}
    """How many times faster than the rest some of the trained vectors move: multiples of the learning rate."""
    has_feature_bounds: ClassVar[bool] = True
    """Whether a pre-activation alone says if its feature is active, as it does not where those of a row compete."""
    tracked: ClassVar[tuple[str, ...]] = ()
    """Tensors that training keeps up to date without gradients: attributes, and tensors of the file."""

    def __init_subclass__(cls) -> None:
        _VARIANTS[cls.variant] = cls

    def __init__(
        self,
        encoder: Tensor,
        b_enc: Tensor,
        decoder: Tensor,
        b_dec: Tensor,
        *,
        input_mean: Tensor | None = None,
        input_scale: Tensor | None = None,
        output_mean: Tensor | None = None,
        output_scale: Tensor | None = None,
        centres_input: bool = True,
        layer_norm: bool = False,
        constant_norm: bool = False,
    ) -> None:
        (d_sae, d_in), d_out = encoder.shape, decoder.shape[-1]
        for name, tensor, shape in (
            ("W_dec", decoder, (d_sae, d_out)),
            ("b_enc", b_enc, (d_sae,)),
            ("b_dec", b_dec, (d_out,)),
            ("input_mean", input_mean, (d_in,)),
            ("input_scale", input_scale, (d_in,)),
            ("output_mean", output_mean, (d_out,)),
            ("output_scale", output_scale, (d_out,)),
        ):
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; W_enc (d_in, d_sae) needs {shape}")
        self.is_transcoder = output_mean is not None or output_scale is not None
        if centres_input and (self.is_transcoder or d_in != d_out):
            raise ValueError("b_dec of a transcoder lies in the space of its output: centres_input must be False")
        if layer_norm and constant_norm:
            raise ValueError("layer_norm and constant_norm are two ways to normalise a row: give one")
        if (layer_norm or constant_norm) and self.is_transcoder:
            raise ValueError("a row's norm is undone by the reconstruction of the same row: a transcoder has none")
        self.encoder = encoder.contiguous()
        self.b_enc = b_enc.contiguous()
        self.decoder = decoder.contiguous()
        self.b_dec = b_dec.contiguous()
        self.input_mean = encoder.new_zeros(d_in) if input_mean is None else input_mean
        self.input_scale = encoder.new_ones(d_in) if input_scale is None else input_scale
        self.output_mean, self.output_scale = self.input_mean, self.input_scale
        if self.is_transcoder:
            self.output_mean = torch.zeros_like(b_dec) if output_mean is None else output_mean
            self.output_scale = torch.ones_like(b_dec) if output_scale is None else output_scale
        self.centres_input, self.layer_norm, self.constant_norm = centres_input, layer_norm, constant_norm

    @property
    def d_in(self) -> int:
        """Inputs."""
        return self.encoder.shape[1]

    @property
    def d_out(self) -> int:
        """Outputs: the inputs, but for a transcoder."""
        return self.decoder.shape[1]

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
        """`(d_sae, d_out)`."""
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
        """What the constructor needs beside tensors, as written to the file."""
        shared = {
            "centres_input": (self.centres_input, True),
            "layer_norm": (self.layer_norm, False),
            "constant_norm": (self.constant_norm, False),
        }
        return {name: value for name, (value, default) in shared.items() if value != default}

    @abstractmethod
    def select(self, pre: Tensor) -> Tensor:
        """Feature activations (n, d_sae) from pre-activations (n, d_sae), which may be overwritten."""

    @abstractmethod
    def training_entries(self, pre: Tensor, objective: Objective) -> tuple[Entries, Tensor]:
        """The entries that a training step touches, and their numbers for `score`.

        `pre` (n, d_sae), the pre-activations, may be overwritten.
        """

    @abstractmethod
    def score(self, entries: Entries, values: Tensor, block: Block, objective: Objective) -> Scored:
        """Losses and hand-derived gradients of a block of rows, from its `training_entries`."""

    # What they share

    def scale(self, x: Tensor) -> Tensor:
        """Scaled input z of activations x; any float type, moved to the weights' type and device."""
        x = self._at_home(x)
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise ValueError(f"activations of shape {tuple(x.shape)} do not fit an SAE of d_in = {self.d_in}")
        if self.normalises_rows:
            mean, deviation = self._row_moments(x)
            x = (x - mean) / deviation
        return (x - self.input_mean) / self.input_scale

    def scale_target(self, y: Tensor) -> Tensor:
        """What training reconstructs, in its scaled space: an SAE's own input, a transcoder's other site."""
        if not self.is_transcoder:
            return self.scale(y)
        return (self._at_home(y) - self.output_mean) / self.output_scale

    def unscale(self, z_hat: Tensor, x: Tensor | None = None) -> Tensor:
        """Activations from the scaled space of the output; `x`, the input's, where a row's norm is undone."""
        x_hat = z_hat * self.output_scale + self.output_mean
        if not self.normalises_rows:
            return x_hat
        if x is None:
            raise ValueError("this SAE normalises each row: decoding needs the activations x that were encoded")
        mean, deviation = self._row_moments(self._at_home(x))
        return x_hat * deviation + mean

    def unscale_residual(self, residual: Tensor, x: Tensor) -> Tensor:
        """Reconstruction - target in the units of the activations, from that in the scaled space, of rows `x`."""
        raw = residual * self.output_scale
        return raw * self._row_moments(self._at_home(x))[1] if self.normalises_rows else raw

    @property
    def normalises_rows(self) -> bool:
        """Whether each row is normalised by itself."""
        return self.layer_norm or self.constant_norm

    def _row_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What each row is shifted and divided by, `(n, 1)`; a row of zeros, which has no norm, stays as it is."""
        if self.layer_norm:
            return row_moments(x)
        norm = x.norm(dim=1, keepdim=True)
        return torch.zeros_like(norm), torch.where(norm > 0, norm / self.d_in**0.5, 1.0)

    def _at_home(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise ValueError(f"x must be a torch tensor of shape (n, {self.d_in}); got {type(x).__name__}")
        return x.to(device=self.device, dtype=self.dtype)

    def centred(self, z: Tensor) -> Tensor:
        """What the encoder multiplies, `(n, d_in)`, of scaled rows z."""
        return z - self.b_dec if self.centres_input else z

    def encode(self, x: Tensor) -> Tensor:
        """Feature activations `(n, d_sae)` of activations `(n, d_in)`."""
        return self.select(torch.addmm(self.b_enc, self.centred(self.scale(x)), self.encoder.T))

    def encode_sparse(self, x: Tensor, *, tile: int = 4096, tiles: Tiles | None = None) -> SparseFeatures:
        """`encode` without zeros; holds one `(n, tile)` buffer.

        Parameters
        ----------
        tile
            Features whose pre-activations are held at a time.
        tiles
            How they are computed, made for this SAE; by default in the type of the weights.
        """
        found = [each.above() for each in self.active_tiles(x, tile, tiles)]
        return SparseFeatures.from_tiles(found, len(x), self.d_sae)

    def decode(self, f: Tensor, x: Tensor | None = None) -> Tensor:
        """Reconstruction `(n, d_out)` from feature activations `(n, d_sae)`; for `x` see `unscale`."""
        if f.ndim != 2 or f.shape[1] != self.d_sae:
            raise ValueError(f"features of shape {tuple(f.shape)} do not fit an SAE of d_sae = {self.d_sae}")
        return self.unscale(torch.addmm(self.b_dec, f, self.decoder), x)

    def decode_sparse(self, f: SparseFeatures, x: Tensor | None = None) -> Tensor:
        """Reconstruction `(n, d_out)` from sparse feature activations; for `x` see `unscale`."""
        return self.unscale(f.pairs().times(self.decoder) + self.b_dec, x)

    def __call__(self, x: Tensor) -> Tensor:
        """Reconstruction `(n, d_in)` of activations `(n, d_in)`."""
        return self.decode(self.encode(x), x)

    def floor(self) -> Tensor | None:
        """`(d_sae,)`: what a feature's pre-activation must exceed to be active, at least 0; None where that is 0."""
        return None

    def active_tiles(self, x: Tensor, tile: int, tiles: Tiles | None) -> Iterator[Tile]:
        """Pre-activations `(n, <= tile)` of each run of `tile` features; `tiles` makes them where given."""
        if tile < 1:
            raise ValueError(f"tile {tile} must be at least 1 feature")
        return (tiles or exact_tiles(self)).of(self.centred(self.scale(x)), tile)

    def tensors(self) -> dict[str, Tensor]:
        """Weights and scaling by their published names, W_enc `(d_in, d_sae)`."""
        scaling = SCALING + (OUTPUT_SCALING if self.is_transcoder else ())
        return {
            "W_enc": self.W_enc,
            "b_enc": self.b_enc,
            "W_dec": self.W_dec,
            "b_dec": self.b_dec,
            **{name: getattr(self, name) for name in (*scaling, *self.trained, *self.tracked)},
        }

    def parameters(self) -> dict[str, Tensor]:
        """The trained tensors by name: encoder, b_enc, decoder, b_dec, and the variant's own."""
        return {name: getattr(self, name) for name in ("encoder", "b_enc", "decoder", "b_dec", *self.trained)}

    def held(self) -> dict[str, Tensor]:
        """Every tensor of it, as it is held in memory: what a checkpoint keeps."""
        scaling = SCALING + (OUTPUT_SCALING if self.is_transcoder else ())
        return {**self.parameters(), **{name: getattr(self, name) for name in (*scaling, *self.tracked)}}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Give this SAE on another device or in another type."""
        return type(self).from_tensors(
            {k: v.to(device=device, dtype=dtype) for k, v in self.tensors().items()}, self.settings()
        )

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Self:
        """An SAE of published tensors (`tensors`) and what `settings` gave."""
        named = (*SCALING, *OUTPUT_SCALING, *cls.trained, *cls.tracked)
        return cls(
            tensors["W_enc"].T,
            tensors["b_enc"],
            tensors["W_dec"],
            tensors["b_dec"],
            **{name: tensors[name] for name in named if name in tensors},  # type: ignore[arg-type]
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


def row_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation `(n, 1)` of each row, by which layer norm shifts and divides it."""
    mean = x.mean(1, keepdim=True)
    return mean, x.std(1, keepdim=True) + _LAYER_NORM_EPS


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
    config = run_path / "config.json"
    if (run_path / "sweep.json").exists():
        return f"{run_path} is a sweep: name one of its runs, which `thresher sweep {run_path}` lists."
    if config.exists():
        if _is_imported(config):
            return (
                f"{run_path} holds no sae.safetensors: its import did not finish. Give the same command (`import`, "
                "`pull`) again with --overwrite."
            )
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


def _is_imported(config: Path) -> bool:
    try:
        return "imported" in json.loads(config.read_bytes())
    except (ValueError, TypeError):
        return False
