"""What a run's tower makes of pictures at the SAE's site, and which features that is.

Shapes: n pictures, h x w pixels of the tower's input, T tokens of a picture at the site, d the length of a vector, F
features.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...harvest.rewrite import load_recorded_clip, recorded_tower
from ...harvest.sites import capture
from ...harvest.vision import LoadedClip, Tower
from ...store.errors import StoreError
from ...store.format import Site
from ...store.reader import ActivationStore, open_store
from ...train.models import SparseAutoencoder
from ...train.run_dir import open_run
from ..features import open_features, refuse_other_weights
from ..stored_statistics import are_of, open_statistics

if TYPE_CHECKING:
    from ..stored_statistics import StoredStatistics


class _Differentiable(Tower):
    """A tower whose forward pass keeps what the backward pass needs."""

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """What the tower's forward pass runs in."""
        dtype = torch.float32 if self.precision == "fp32" else torch.bfloat16
        with torch.enable_grad(), torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32"):
            yield


@dataclass(frozen=True)
class FeatureProbe:
    """A run's tower up to the site, and its SAE. No block after the site runs.

    Parameters
    ----------
    exact
        The tower in the store's precision, for activations.
    differentiable
        The tower in float32, on CUDA with its matrix products in bfloat16, for gradients.
    sae
        On the tower's device, in float32.
    site
        Where the SAE reads.
    largest
        `(F,)`: each feature's largest activation on the run's rows; 0 of those that never fire.
    batch_size
        Pictures in a forward pass.
    pooling
        `mean` or `centre`: which of several tokens a picture's row is.
    """

    exact: Tower
    differentiable: Tower
    sae: SparseAutoencoder
    site: Site
    largest: NDArray[np.float32]
    batch_size: int = 32
    pooling: str = "mean"

    @property
    def device(self) -> torch.device:
        """Where tower and SAE are."""
        return self.exact.device

    @property
    def n_features(self) -> int:
        """Features of the SAE."""
        return self.sae.d_sae

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of what the tower sees, in pixels."""
        height, width = self.exact.preprocessing["size"]
        return int(height), int(width)

    def view(self, picture: Image.Image) -> NDArray[np.uint8]:
        """A picture of any size as the tower sees it: `(h, w, 3)`, by the tower's own resizing and cropping."""
        return self.exact.pixels(picture)

    def activations(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The SAE's activations of pictures, in the precision of the store.

        Parameters
        ----------
        pixels
            `(n, h, w, 3)`.

        Returns
        -------
        activations
            `(n, F)`; of several tokens each feature's largest, since a row of the run is a token.
        """
        found = np.empty((len(pixels), self.n_features), np.float32)
        for start in range(0, len(pixels), self.batch_size):
            some = torch.tensor(pixels[start : start + self.batch_size])
            rows = capture(self.exact, self.exact.normalise(some), [self.site])[self.site]  # (b, d) or (b, T, d)
            with torch.inference_mode():
                f = self.sae.encode(rows.flatten(0, -2)).view(*rows.shape[:-1], -1)
                found[start : start + len(some)] = (f.amax(1) if f.ndim == 3 else f).cpu().numpy()
        return found

    def rows(self, images: Tensor) -> Tensor:
        """What the encoder multiplies, of pictures: differentiable.

        Parameters
        ----------
        images
            `(n, 3, h, w)`, from 0 to 1, on the device.

        Returns
        -------
        rows
            `(n, d)` float32, centred; of several tokens as `pooling` says. A pre-activation is affine in its row, so
            that the mean of the tokens' pre-activations is that of their mean row.
        """
        mean, std = (
            torch.tensor(self.exact.preprocessing[name], device=self.device).view(-1, 1, 1) for name in ("mean", "std")
        )
        x = capture(self.differentiable, (images - mean) / std, [self.site])[self.site]
        if x.ndim == 2:
            return self.sae.centred(self.sae.scale(x))
        n, n_tokens, d = x.shape
        if self.pooling == "centre":
            return self.sae.centred(self.sae.scale(x[:, self._centre(n_tokens)]))
        return self.sae.centred(self.sae.scale(x.reshape(-1, d))).view(n, n_tokens, -1).mean(1)

    def _centre(self, n_tokens: int) -> int:
        """The token of the patch in the middle of the picture; of an even number the one below and to the right."""
        rows, columns = self.exact.visual.grid_size  # type: ignore[misc]
        return n_tokens - int(rows) * int(columns) + int(rows) // 2 * int(columns) + int(columns) // 2

    def preactivations(self, images: Tensor, features: Tensor) -> Tensor:
        """The pre-activation of one feature of each picture, which has a gradient where the feature is off, too.

        Parameters
        ----------
        images
            `(n, 3, h, w)`, from 0 to 1, on the device.
        features
            `(n,)` int64.

        Returns
        -------
        preactivations
            `(n,)` float32. Of a gated SAE it is the gate's, of which the magnitude is an increasing function.
        """
        return (self.rows(images) * self.sae.encoder[features]).sum(1) + self.sae.b_enc[features]

    def with_sae(self, sae: SparseAutoencoder, largest: NDArray[np.float32] | None = None) -> "FeatureProbe":
        """The same tower with another SAE on the same site."""
        return dataclasses.replace(self, sae=sae.to(self.device), largest=self.largest if largest is None else largest)


@dataclass(frozen=True)
class ProbedRun:
    """A run whose features are to be shown.

    Parameters
    ----------
    path
        Of the run.
    probe
        Its tower and SAE.
    store
        The store that it was encoded on.
    stored
        Its statistics.
    """

    path: Path
    probe: FeatureProbe
    store: ActivationStore
    stored: "StoredStatistics"


def open_probe(run_path: Path | str, device: str = "auto", *, batch_size: int = 32, pooling: str = "mean") -> ProbedRun:
    """Load the tower and the SAE of a run.

    Parameters
    ----------
    device, batch_size, pooling
        See `VisualiseOptions`.

    Raises
    ------
    StoreError
        When the run was not encoded or counted, its parts are not of each other, or the tower is not the store's any
        more.
    ValueError, FileNotFoundError, ConnectionError
        As `load_recorded_clip` raises them.
    """
    path = Path(run_path)
    run, features, stored = open_run(path), open_features(path), open_statistics(path)
    info = features.info
    refuse_other_weights(path, features)
    if not are_of(stored, info):
        raise StoreError(f"the statistics of {path} are of other features: run `thresher stats {path} --overwrite`.")
    store = open_store(info.store, n_parts=info.n_store_parts)
    if store.fingerprint != info.store_fingerprint:
        raise StoreError(f"{info.store} holds other rows than were encoded: encode again with --overwrite.")
    clip = load_recorded_clip(store.provenance)
    tower = recorded_tower(clip, store.provenance, device)
    sae, site = run.load_sae(tower.device), Site.parse(info.site)
    largest = np.nan_to_num(stored.statistics.max.astype(np.float32))
    probe = FeatureProbe(
        tower, _differentiable(tower, clip), sae.to(dtype=torch.float32), site, largest, batch_size, pooling
    )
    return ProbedRun(path, probe, store, stored)


def _differentiable(tower: Tower, clip: LoadedClip) -> Tower:
    """The tower of a loaded model for gradients with respect to pictures; its own weights have none."""
    whole = dataclasses.replace(tower, visual=clip.model.visual, precision="fp32")  # type: ignore[arg-type]
    wanted = "bf16" if tower.device.type == "cuda" else "fp32"
    return _Differentiable(**(tower if tower.precision == wanted else whole.at_precision(wanted)).__dict__)
