"""The causal direction of a feature: what images' embeddings lose when it is ablated, or gain when it is added.

The site's vector h is changed by the feature alone, h - a_f w_f or h + a_f w_f with w_f its decoder vector in the
tower's units: what the SAE does not explain stays, and so does every other feature, as chosen by the SAE before. That
is the reconstruction without the feature plus the SAE's error. With unit embeddings e and unit text t the mean change
of their cosine is the product of t and the mean effect.

Activations are given, those that `encode` stored: encoding the tower's vectors once more would differ in the last bits,
in which a TopK SAE may choose other features.

On the images where a feature is strongest, its ablation tells little of its direction behind the last blocks: w_f is
then most of what varies in the vector, and without it `ln_post` amplifies the rest. Adding the feature to images
without it has no such trouble: on quickstart that names four times as many features rightly.

Shapes: n lines of the result, p changes, T tokens of an image at the site, d the width of the stream, e the length of
an embedding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from ...harvest.sites import tokens_per_image
from ...harvest.vision import Tower
from ...progress import Task
from ...store.errors import StoreError
from ...store.format import Site
from ...store.reader import ActivationArray
from ...train.models import SparseAutoencoder
from .remaining import Remaining, Streams
from .stream import Pictures, decoder_vectors, into_stream, pooled_embedding, pools_class_token, written_site

KINDS = ("ablate", "add")
"""What is measured: e(x) - e(x without the feature), or e(x with the feature added) - e(x)."""

_CHANGES_AT_ONCE = 4096
_CHANGE_BYTES = 1 << 28


@dataclass(frozen=True)
class Changes:
    """Features that are changed on images, one after the other.

    Parameters
    ----------
    line
        `(p,)`: the line of the result whose mean each belongs to.
    feature
        `(p,)`.
    row
        `(p,)`: a row of the store; of several tokens any row of the image, but always the same.
    activation
        `(p, T)`, or `(p,)` for T = 1: how much of the feature is taken away, or added, at each of the site's tokens. T
        is 1 for `cls`, and for `mean`, where every patch is changed by as much, and with them their mean.
    """

    line: NDArray[np.int64]
    feature: NDArray[np.int64]
    row: NDArray[np.int64]
    activation: NDArray[np.float32]

    def __post_init__(self) -> None:
        shape = self.line.shape
        if self.feature.shape != shape or self.row.shape != shape or self.activation.shape[:1] != shape:
            raise ValueError(
                f"changes need a line, a feature, a row and an activation each: got {self.line.shape}, "
                f"{self.feature.shape}, {self.row.shape} and {self.activation.shape}."
            )
        if not np.isfinite(self.activation).all():
            raise ValueError("an activation of a change is not a finite number.")

    def by_row(self) -> "Changes":
        """The same in order of row."""
        order = np.argsort(self.row, kind="stable")
        amounts = self.activation if self.activation.ndim == 2 else self.activation[:, None]
        return Changes(self.line[order], self.feature[order], self.row[order], amounts[order])


def needs_images(tower: Tower, written: Site) -> bool:
    """Whether effects take the images: not where the stored vectors are all that the embedding is made of."""
    is_last = written.layer == tower.n_layers - 1 and written.site == "resid_post" and written.token == "cls"
    return not (is_last and pools_class_token(tower))


def mean_effects(
    tower: Tower,
    sae: SparseAutoencoder,
    site: Site,
    pictures: Pictures | None,
    changes: Changes,
    kind: str,
    *,
    n: int,
    target: Site | None = None,
    stored: ActivationArray | None = None,
    renormalised: bool = True,
    task: Task | None = None,
) -> NDArray[np.float32]:
    """Mean change of the unit image embedding over each line's changes: `(n, e)`, NaN of a line without any.

    Each image's stream is computed once a call: give many features at a time. Give a tower in fp32, since an effect is
    a small difference.

    Parameters
    ----------
    pictures
        May be None where nothing `needs_images`.
    kind
        A word of `KINDS`.
    target
        What a transcoder reconstructs, where features are changed.
    stored
        The site's own vectors; used in the place of images where `needs_images` says that they will do.
    renormalised
        Whether the changed embedding is brought to length 1 too, as cosines are. Of a change along the embedding itself
        little is left then. Without, it is divided by the length of the unchanged one, and that part stays: on an image
        that shows one thing alone it is the thing's.
    task
        Told of each change.

    Raises
    ------
    ValueError
        As `written_site`; when a change does not fit the SAE or the site, or no image can be read.
    StoreError
        When a stored vector is of an image that could not be read.
    """
    written = written_site(tower, sae, site, target)
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}.")
    ordered = changes.by_row()
    _check(ordered, n, sae, 1 if written.token == "mean" else tokens_per_image(tower, written.token))
    sign = -1.0 if kind == "ablate" else 1.0
    sums = _Sums(n)
    if stored is not None and site == written and not needs_images(tower, written):
        found = _from_stored(tower, sae, stored, ordered, sign)
    elif pictures is None:
        raise ValueError(f"effects at {written} are of images run through the tower again: name IMAGES.")
    else:
        found = _from_images(tower, sae, site, written, pictures, ordered, sign)
    for which, before, after in found:
        length = (after if renormalised else before).norm(dim=-1, keepdim=True)
        sums.add(ordered.line[which], sign * (after / length - normalize(before, dim=-1)))
        if task is not None:
            task.advance(len(which))
    if len(changes.row) and not sums.counts.any():
        raise ValueError("none of the images that features are changed on can be read: name IMAGES.")
    return sums.means(int(tower.visual.output_dim))  # type: ignore[arg-type]


_Found = Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]
"""Which of the changes, and the embeddings `(q, e)` before and after each, of any length."""


def _from_stored(
    tower: Tower, sae: SparseAutoencoder, stored: ActivationArray, changes: Changes, sign: float
) -> _Found:
    """Of the class token behind the last block: ln_post and the projection of stored vectors, changed and not."""
    for start in range(0, len(changes.row), _CHANGES_AT_ONCE):
        some = np.arange(start, min(start + _CHANGES_AT_ONCE, len(changes.row)))
        rows, image = np.unique(changes.row[some], return_inverse=True)
        buffer = np.empty((len(rows), stored.d_in), stored.stored_dtype)
        positions = stored.store.positions_of(rows)
        if (positions < 0).any():
            raise StoreError(f"rows of {stored.store.url} that features fired on have no vector: encode again.")
        stored.read_runs(positions, np.ones_like(positions), buffer)
        x = stored.tensor(buffer).float().to(tower.device)
        read = x[torch.as_tensor(image, device=x.device)]
        w = decoder_vectors(sae, changes.feature[some], read).to(x)
        amounts = torch.as_tensor(sign * changes.activation[some], dtype=torch.float32, device=x.device)
        before = pooled_embedding(tower, x[:, None])
        after = pooled_embedding(tower, (read + amounts * w)[:, None])
        yield some, before[torch.as_tensor(image, device=x.device)], after


def _from_images(
    tower: Tower,
    sae: SparseAutoencoder,
    site: Site,
    written: Site,
    pictures: Pictures,
    changes: Changes,
    sign: float,
) -> _Found:
    """Of any site: the images' streams up to it, then what is behind it, once for each change."""
    remaining = Remaining(tower, written, site if sae.normalises_rows else None)
    rows, first = np.unique(changes.row, return_index=True)
    edges = np.append(first, len(changes.row))  # changes edges[k] to edges[k + 1] are of row k
    at_once = max(1, min(_CHANGES_AT_ONCE, _CHANGE_BYTES // (4 * changes.activation.shape[1] * tower.width)))
    for places, pixels in pictures.pixels(rows):
        streams = remaining.streams(tower.normalise(pixels))
        counts = np.diff(edges)[places]
        which = np.concatenate([np.arange(edges[k], edges[k + 1]) for k in places.tolist()])
        image = np.repeat(np.arange(len(places)), counts)
        if remaining.is_blind:  # nothing to compute, exactly
            same = torch.ones(len(which), int(tower.visual.output_dim), device=tower.device)  # type: ignore[arg-type]
            yield which, same, same
            continue
        unchanged = torch.arange(len(places), device=tower.device)
        zero = torch.zeros(len(places), 1, tower.width, device=tower.device)
        before = remaining.embeddings(streams, unchanged, zero)  # by the same route, so that no change is exactly none
        for start in range(0, len(which), at_once):
            some = slice(start, start + at_once)
            at = torch.as_tensor(image[some], device=tower.device)
            change = _change(tower, sae, written, streams, at, changes, which[some], sign)
            yield which[some], before[at], remaining.embeddings(streams, at, change)


def _change(
    tower: Tower,
    sae: SparseAutoencoder,
    written: Site,
    streams: Streams,
    at: Tensor,
    changes: Changes,
    which: NDArray[np.int64],
    sign: float,
) -> Tensor:
    """What is added to the stream at the site's tokens: `(q, T, d)`."""
    amounts = torch.as_tensor(sign * changes.activation[which], dtype=torch.float32, device=tower.device)  # (q, T)
    feature = changes.feature[which]
    if streams.read is None:
        nothing = torch.zeros(sae.d_in, device=sae.device)
        w = into_stream(tower, written, decoder_vectors(sae, feature, nothing).to(amounts))[:, None]  # (q, 1, d)
    else:
        x = streams.read[at]  # (q, T, d_in): each row has its own scale
        w = decoder_vectors(sae, np.repeat(feature, x.shape[1]), x.flatten(0, 1)).to(amounts)
        w = into_stream(tower, written, w.view(*x.shape[:2], -1))
    return amounts[..., None] * w


class _Sums:
    """Sums over lines, in float64 on the CPU."""

    def __init__(self, n: int) -> None:
        self.counts = np.zeros(n, np.int64)
        self._total: Tensor | None = None

    def add(self, line: NDArray[np.int64], values: Tensor) -> None:
        """Add values `(q, e)` to their lines `(q,)`."""
        if self._total is None:
            self._total = torch.zeros(len(self.counts), values.shape[1], dtype=torch.float64)
        self._total.index_add_(0, torch.as_tensor(line), values.cpu().double())
        self.counts += np.bincount(line, minlength=len(self.counts))

    def means(self, length: int) -> NDArray[np.float32]:
        """Mean of each line, `(n, length)`."""
        if self._total is None:
            return np.full((len(self.counts), length), np.nan, np.float32)
        with np.errstate(invalid="ignore"):
            found: NDArray[np.float64] = self._total.numpy() / self.counts[:, None]
        return found.astype(np.float32)


def _check(changes: Changes, n: int, sae: Any, n_tokens: int) -> None:
    for name, numbers, stop in (("line", changes.line, n), ("feature", changes.feature, sae.d_sae)):
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < stop):
            raise ValueError(f"changes name the {name}s {numbers.min()} to {numbers.max()}, of 0 to {stop - 1}.")
    if changes.activation.shape[1] != n_tokens:
        raise ValueError(
            f"changes have activations of {changes.activation.shape[1]} tokens an image; the site has {n_tokens}."
        )
