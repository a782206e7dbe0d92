"""Puts an SAE's reconstruction in the place of a tower's activations, for as long as a `with` block runs.

Shapes: n images, t tokens of the tower (the class token first), T of them spliced, d the length of a vector, F
features.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..store.format import SITES, Site
from .sites import PASSED, at_site, n_class_tokens, site_width
from .vision import Tower

REPLACEMENTS = ("sae", "zero", "mean")
"""What activations are replaced by: an SAE's reconstruction, zeros, a given mean."""

_Model = TypeVar("_Model", bound=Tower | nn.Module)
Edit = Callable[[Tensor], Tensor]


class Autoencoder(Protocol):
    """What is spliced in: an SAE, or a transcoder, as `load_sae` gives it."""

    @property
    def d_in(self) -> int:
        """Length of the vectors it reads."""

    @property
    def d_out(self) -> int:
        """Length of the vectors it gives."""

    is_transcoder: bool
    """Whether it gives another site's vectors than it reads."""

    def encode(self, x: Tensor) -> Tensor:
        """Feature activations `(rows, F)` of activations `(rows, d_in)`."""

    def decode(self, f: Tensor, x: Tensor | None = None) -> Tensor:
        """Reconstruction `(rows, d_out)` from feature activations, of the rows x."""


@contextmanager
def splice(
    model: _Model,
    sae: Autoencoder | None,
    site: Site | str,
    *,
    target: Site | str | None = None,
    replace: str = "sae",
    mean: Tensor | None = None,
    keep_error: bool = False,
    edit: Edit | None = None,
) -> Iterator[_Model]:
    """Replace what passes at a site of an image tower, until the block ends.

    Everything after the site computes with what was put there. Nothing else changes: the model runs in its own
    precision and on its own device, the SAE in its own (autocast is off for it), and gradients flow through both unless
    the caller says otherwise. Splices may be nested; of two at one site the inner one sees what the outer one left, and
    so does `capture` inside the block. One thread at a time: hooks belong to the model.

    Parameters
    ----------
    model
        A `Tower`, an open_clip model, or its `visual`: with open_clip's vision transformer.
    sae
        What `load_sae` gives; None where `replace` is not `sae`.
    site
        Where it reads, and what is replaced: a `Site`, or its path `layers/22/resid_post/cls`. Its token says which
        vectors: the class token's, the patches', or all. The mean of the patches is no place in the tower.
    target
        For a transcoder: the site that is replaced, at the same tokens, and not before the one read.
    replace
        A word of `REPLACEMENTS`: `zero` and `mean` ablate the site.
    mean
        `(d,)`, or `(T, d)` with one for each token: for `replace="mean"`.
    keep_error
        Add what the SAE, before any edit, leaves of the activations: without an edit the model then gives what it gave
        before, to rounding, and with one the difference is the edit's alone. A constant to gradients, which thus flow
        through the features alone.
    edit
        Given the feature activations, `(n, F)` of `cls`, else `(n, T, F)`; gives those to decode.

    Yields
    ------
    model
        The same.

    Raises
    ------
    ValueError
        When model, SAE, site and what is asked for do not fit together; inside the block, when `edit` gives another
        shape.
    """
    visual = _vision_transformer(model)
    place, replaced = place_in(visual, site), place_in(visual, site if target is None else target)
    if replace not in REPLACEMENTS:
        raise ValueError(f"replace {replace!r} is none of {', '.join(REPLACEMENTS)}.")
    new_rows: _Replacement
    if replace == "sae":
        if sae is None:
            raise ValueError("no SAE to splice in: give one, or replace='zero' or 'mean'.")
        if mean is not None:
            raise ValueError("mean goes with replace='mean'.")
        _check_fit(visual, sae, place, replaced)
        new_rows = _Reconstruction(sae, keep_error, edit, place.token == "cls")
    else:
        if keep_error or edit is not None or target is not None:
            raise ValueError(f"keep_error, edit and target are an SAE's: replace={replace!r} has none.")
        if (mean is not None) != (replace == "mean"):
            raise ValueError("mean goes with replace='mean', which needs it.")
        if mean is not None and (mean.ndim > 2 or mean.shape[-1] != site_width(visual, place)):
            raise ValueError(f"mean has shape {tuple(mean.shape)}; {place} has vectors of {site_width(visual, place)}.")
        new_rows = _Constant(mean)
    with ExitStack() as stack:
        for handle in _hooks(visual, place, replaced, new_rows):
            stack.callback(handle.remove)
        yield model


class _Replacement(Protocol):
    """What is put in the place of rows."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """In the place of y `(n, T, d)`, where x was read; as y in shape, of any type and device."""


class _Reconstruction:
    """What an SAE makes of the rows it reads."""

    def __init__(self, sae: Autoencoder, keep_error: bool, edit: Edit | None, is_cls: bool) -> None:
        self._sae, self._keep_error, self._edit, self._is_cls = sae, keep_error, edit, is_cls

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        f = self._sae.encode(rows)
        with torch.no_grad():  # before the edit, which may change f where it lies
            before = self._sae.decode(f, rows) if self._keep_error and self._edit is not None else None
        new = self._sae.decode(f if self._edit is None else self._edited(f, x.shape[:2]), rows)
        if self._keep_error:
            before = new.detach() if before is None else before
            new = new + (y.detach().flatten(0, 1).to(before) - before)
        return new.view(y.shape)

    def _edited(self, f: Tensor, rows: torch.Size) -> Tensor:
        shown = f if self._is_cls else f.view(*rows, -1)
        shape = shown.shape
        assert self._edit is not None
        edited = self._edit(shown)
        if edited.shape != shape:
            raise ValueError(f"edit gave {tuple(edited.shape)} for feature activations of {tuple(shape)}.")
        return edited.reshape(f.shape)


class _Constant:
    """A mean, or zero."""

    def __init__(self, mean: Tensor | None) -> None:
        self._mean = mean

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(y) if self._mean is None else self._mean.expand(y.shape)


def _hooks(
    visual: nn.Module, place: Site, replaced: Site, new_rows: _Replacement
) -> Iterator[torch.utils.hooks.RemovableHandle]:
    n_class = n_class_tokens(visual)
    batch_first = bool(getattr(visual.transformer, "batch_first", False))
    tokens = {"cls": slice(0, 1), "patch": slice(n_class, None), "all": slice(None)}[place.token]
    read: list[Tensor] = []  # by a transcoder's first hook

    def turned(passing: Tensor) -> Tensor:
        return passing if batch_first else passing.transpose(0, 1)  # (n, t, d); (t, n, d) in older open_clip

    def see(passing: Tensor) -> None:
        read[:] = [turned(passing)[:, tokens]]

    def put(passing: Tensor) -> Tensor:
        whole = turned(passing)
        y = whole[:, tokens]
        # autocast would round the SAE's products as it rounds the tower's
        with torch.autocast(passing.device.type, enabled=False):
            new = new_rows(read.pop() if place != replaced else y, y).to(whole.device, whole.dtype)
        if place.token != "all":
            parts = [new, whole[:, 1:]] if place.token == "cls" else [whole[:, :n_class], new]
            new = torch.cat(parts, dim=1)
        return turned(new)

    blocks = visual.transformer.resblocks  # type: ignore[union-attr]
    if place != replaced:
        yield at_site(blocks[place.layer], place.site, see)  # type: ignore[index, arg-type]
    yield at_site(blocks[replaced.layer], replaced.site, put)  # type: ignore[index, arg-type]


def _vision_transformer(model: Tower | nn.Module) -> nn.Module:
    visual = getattr(model, "visual", model)
    if not hasattr(getattr(visual, "transformer", None), "resblocks"):
        raise ValueError(
            f"{type(visual).__name__} has no residual blocks `transformer.resblocks`: give a tower of load_tower, or "
            "an open_clip model with open_clip's vision transformer."
        )
    return visual  # type: ignore[return-value]


def place_in(visual: nn.Module, site: Site | str) -> Site:
    """The site, if open_clip's vision transformer has such a place; else `ValueError`."""
    place = Site.parse(site) if isinstance(site, str) else site
    n = len(visual.transformer.resblocks)  # type: ignore[union-attr, arg-type]
    if not 0 <= place.layer < n:
        raise ValueError(f"layer {place.layer} is out of range: the tower has layers 0 to {n - 1} (0-based).")
    if place.site not in SITES:
        raise ValueError(f"site {place.site!r} is none of {', '.join(SITES)}.")
    if place.token == "mean":
        raise ValueError(
            f"{place}: the mean of the patches is no place in the tower that could be replaced; splice an SAE of cls, "
            "patch or all."
        )
    if place.token not in ("cls", "patch", "all"):
        raise ValueError(f"token {place.token!r} is none of cls, patch, all.")
    if place.token != "patch" and not n_class_tokens(visual):
        raise ValueError(f"{place}: the tower has no class token; splice an SAE of patch.")
    return place


def _check_fit(visual: nn.Module, sae: Autoencoder, place: Site, replaced: Site) -> None:
    if sae.is_transcoder != (place != replaced):
        raise ValueError(
            f"a transcoder reads {place} and replaces another site: name it as target."
            if sae.is_transcoder
            else f"target {replaced} is another site than {place}: only a transcoder gives another site's vectors."
        )
    if place.token != replaced.token:
        raise ValueError(f"{place} and {replaced} are other tokens: a transcoder gives those that it reads.")
    if (replaced.layer, PASSED.index(replaced.site)) < (place.layer, PASSED.index(place.site)):
        raise ValueError(f"{replaced} comes before {place}: it has passed when the transcoder reads.")
    for what, width, where in (("reads", sae.d_in, place), ("gives", sae.d_out, replaced)):
        if width != site_width(visual, where):
            raise ValueError(
                f"the SAE {what} vectors of {width}; those of {where} have {site_width(visual, where)}: it is of "
                "another tower or site."
            )
