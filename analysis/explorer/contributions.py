"""What each feature that fires on a row contributes to a class: a_f (W_dec[f] . u_c).

u_c is the gradient, with respect to the row's vector, of the logit of class c less the mean logit of all classes, as
the tower's last layer norm and projection read that vector: to first order a contribution is how much of that logit
goes when the feature is taken out, its reading through the blocks in between left aside.

Shapes: n features, d the length of a vector, C classes, e the length of an embedding.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...store.errors import StoreError
from .page import BadQuery, Unavailable
from .phrases import last_norm, stream_site
from .runs import ExploredRun
from .tower import ClassTexts

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST_CLASS = 400


@dataclass(frozen=True)
class Contributions:
    """Of the features of a row to a class."""

    name: str
    """Of the class."""
    label: int
    is_exact: bool
    """Whether the tower itself reads the row's vector by its last layer norm and projection alone."""
    features: NDArray[np.int64]
    """As the code has them: by falling activation."""
    values: NDArray[np.float64]
    """Logits, `(n,)`."""
    classes: list[str]
    """That can be asked for."""


def contributions(run: ExploredRun, row: int, asked: str) -> Contributions:
    """What the features of a row contribute to the logit of a class; within a turn of the run's tower.

    Parameters
    ----------
    asked
        The name of a class; empty for the row's own, or the first where it has none.

    Raises
    ------
    BadQuery
        When there is no such class.
    Unavailable
        When the run's vectors are none of the residual stream, or its tower, classes or store are not at hand.
    """
    import torch

    from ..naming.stream import decoder_vectors, pools_class_token

    site, target = stream_site(run), run.tower.target
    if target is not None:
        raise Unavailable(f"This run's features write to {target}, and its store holds what they read.")
    (_, tower), sae, texts = run.tower.clip(), run.tower.sae(), run.tower.class_texts()
    place = _place(texts, asked, int(run.row_number("label", row)))
    x = _vector(run, row).to(tower.device)
    others = texts.embeddings[place] - texts.embeddings.mean(axis=0)
    u = gradient(tower.visual, x, torch.from_numpy(texts.logit_scale * others).to(x))
    index, value = run.code(row)
    written = decoder_vectors(sae, index, x).double().cpu().numpy()
    is_last = site.layer == len(tower.blocks) - 1 and (site.site, site.token) == ("resid_post", "cls")
    return Contributions(
        name=texts.names[place],
        label=texts.labels[place],
        is_exact=is_last and pools_class_token(tower),
        features=index,
        values=value.astype(np.float64) * (written @ u.double().cpu().numpy()),
        classes=texts.names,
    )


def gradient(visual: Any, x: "Tensor", direction: "Tensor") -> "Tensor":
    """Gradient `(d,)` of e(x) . direction, where e(x) is the unit embedding of a vector `(d,)` of the stream.

    Raises
    ------
    Unavailable
        As `last_norm`.
    """
    import torch
    from torch.nn import functional

    norm = last_norm(visual)
    with torch.inference_mode(False), torch.enable_grad():
        start = x.detach().clone().float().requires_grad_()
        weight, bias = (None if each is None else each.detach().float() for each in (norm.weight, norm.bias))
        stream = functional.layer_norm(start, (len(start),), weight, bias, norm.eps)
        embedded = stream if visual.proj is None else stream @ visual.proj.detach().float()
        (found,) = torch.autograd.grad(functional.normalize(embedded, dim=0) @ direction.detach().clone(), start)
    return found


def _place(texts: ClassTexts, asked: str, own: int) -> int:
    """Of a class among the texts."""
    if not asked.strip():
        return texts.place_of_label.get(own, 0)
    wanted = _plain(asked[:_LONGEST_CLASS])
    for place, name in enumerate(texts.names):
        if _plain(name) == wanted:
            return place
    raise BadQuery(f"no class is called {asked[:40]!r}.")


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def _vector(run: ExploredRun, row: int) -> "Tensor":
    """The stored vector of a row, `(d,)`."""
    store = run.require_store()
    try:
        activations = store.activations(run.tower.site)
        return activations.tensor(activations.read(row, row + 1))[0].float()
    except (StoreError, OSError, ValueError) as error:
        raise Unavailable(f"The row cannot be read from the store: {' '.join(str(error).split())}") from error
