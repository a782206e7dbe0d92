"""Which features a phrase is about: each feature's direction in CLIP's space of images and texts, and cosines with it.

A feature's direction is the mean embedding of the rows on which it is largest, less the mean over all shown features; a
phrase's is its text embedding, less the mean over class names. Both means have to go: CLIP keeps pictures and texts
apart, and what all pictures, or all texts, share would drown what tells them apart.

Shapes: n shown features, m of a feature's rows, d the length of a stored vector, e the length of an embedding.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ...store.errors import StoreError
from ...store.format import Site
from .page import BadQuery, Unavailable
from .runs import ExploredRun

if TYPE_CHECKING:
    from torch import Tensor, nn

LONGEST_PHRASE = 200
ROWS_PER_FEATURE = 8
"""Of a feature's largest: 20 instead of 8 would find 2 % more, at 2.5 times the reading (docs/measurements)."""
_FEATURES_AT_ONCE = 1024
_FEWEST_CLASSES, _MOST_CLASSES = 20, 256
"""Class names whose mean embedding stands for texts as such; with fewer, ImageNet's names are taken."""
_KEPT_PHRASES = 64

Floats = NDArray[np.float32]


@dataclass
class PhraseSpace:
    """What phrases are compared with.

    Parameters
    ----------
    features
        `(n,)`, ascending: those that are shown.
    directions
        `(n, e)`, of norm 1; zeros where a feature has no direction of its own.
    text_mean
        `(e,)`: mean of the unit embeddings of class names.
    is_exact
        Whether stored vectors become CLIP's own image embeddings: those of the class token after the last block.
    """

    features: NDArray[np.int64]
    directions: Floats
    text_mean: Floats
    is_exact: bool
    known: "OrderedDict[str, Floats]" = field(default_factory=OrderedDict)
    """Scores of the phrases that were asked for last."""


_SPACES: "WeakKeyDictionary[ExploredRun, PhraseSpace]" = WeakKeyDictionary()
_MAKING, _KEEPING = threading.Lock(), threading.Lock()


def rank(run: ExploredRun, text: str) -> tuple[NDArray[np.int64], Floats]:
    """The shown features by how well a phrase describes them, the best first, and their scores.

    The first call takes seconds (the tower is loaded, and rows of every feature are read): call it in a thread.

    Returns
    -------
    ids, scores
        `(n,)` each; a score is a cosine after centring, -1 to 1. Of equal scores, the lower id first.

    Raises
    ------
    BadQuery
        When the phrase is empty or too long.
    Unavailable
        When the run's tower, its store or a text tower is not at hand; the line says which.
    """
    found = scores(run, text)
    order = np.argsort(-found, kind="stable")
    return run.shown[order], found[order]


def scores(run: ExploredRun, text: str) -> Floats:
    """`(n,)` score of each shown feature in their order; see `rank`."""
    phrase = clean_phrase(text)
    space = phrase_space(run)
    found = space.known.get(phrase)
    if found is None:
        embedding = run.tower.embed_text([phrase], caption="{}")[0]
        found = space.directions @ centred_unit(embedding[None], space.text_mean)[0]
        with _KEEPING:
            space.known[phrase] = found
            while len(space.known) > _KEPT_PHRASES:
                space.known.popitem(last=False)
    return found


def clean_phrase(text: str) -> str:
    """A phrase as it is embedded: blanks one at a time, no control characters; `BadQuery` where nothing is left."""
    if len(text) > LONGEST_PHRASE:
        raise BadQuery(f"a phrase has at most {LONGEST_PHRASE} characters, not {len(text):,}.")
    phrase = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not phrase:
        raise BadQuery("type a word or a phrase.")
    return phrase


def phrase_space(run: ExploredRun) -> PhraseSpace:
    """Directions of the shown features, made at the first call and kept; raises as `rank`."""
    with _MAKING:
        if run not in _SPACES:
            _SPACES[run] = _make_space(run)
        return _SPACES[run]


def centred_unit(vectors: Floats, mean: Floats) -> Floats:
    """Rows of `(n, e)` less a mean, scaled to norm 1; zeros where nothing is left."""
    centred = vectors - mean
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    # what float32 rounding leaves of a vector of norm up to 1 that equals the mean is no direction
    found: Floats = np.where(norm > 1e-6, centred / np.maximum(norm, 1e-6), 0).astype(np.float32)
    return found


def _make_space(run: ExploredRun) -> PhraseSpace:
    site = stream_site(run)
    text_mean = run.tower.embed_text(_class_names(run), caption="{}").mean(axis=0)
    with run.tower.turn():
        visual = run.tower.clip()[0].model.visual
        n_layers = len(visual.transformer.resblocks)  # type: ignore[union-attr, arg-type]
        means = _mean_embeddings(run, site, visual)  # type: ignore[arg-type]
    directions = centred_unit(means, means.mean(axis=0) if len(means) else np.zeros(1, np.float32))
    is_exact = (site.site, site.token, site.layer) == ("resid_post", "cls", n_layers - 1)
    return PhraseSpace(run.shown, directions, text_mean, is_exact)


def stream_site(run: ExploredRun) -> Site:
    """Where the run's rows were read; `Unavailable` where they are no vectors of the residual stream."""
    site = run.tower.site
    if site.site not in ("resid_pre", "resid_post"):
        raise Unavailable(
            f"Phrases need vectors of the residual stream, which alone the last layer norm and projection can read: "
            f"this run's are of {site.site}."
        )
    return site


def _class_names(run: ExploredRun) -> list[str]:
    """Names of things, as a visitor would type them."""
    names = list(dict.fromkeys(name.replace("-", " ").replace("_", " ").strip() for name in run.label_names))
    names = [name for name in names if name]
    if len(names) < _FEWEST_CLASSES:
        from open_clip import IMAGENET_CLASSNAMES

        names = list(IMAGENET_CLASSNAMES)
    return names[:: -(-len(names) // _MOST_CLASSES)]


def _mean_embeddings(run: ExploredRun, site: Site, visual: "nn.Module") -> Floats:
    """`(n, e)`: mean of the unit embeddings of each shown feature's largest rows."""
    store = run.require_store()
    top_rows = run.stored.statistics.top_row[run.shown, :ROWS_PER_FEATURE]  # (n, m), -1 unfilled
    means = []
    try:
        activations = store.activations(site)
        for first in range(0, len(top_rows), _FEATURES_AT_ONCE):
            rows = top_rows[first : first + _FEATURES_AT_ONCE]
            unique, where = np.unique(rows, return_inverse=True)
            is_row = unique >= 0
            positions = store.positions_of(unique[is_row])
            vectors = np.empty((len(positions), activations.d_in), activations.stored_dtype)
            activations.read_runs(positions, np.ones(len(positions), np.int64), vectors)
            embedded = embed_vectors(visual, activations.tensor(vectors))
            of_row = np.zeros((len(unique), embedded.shape[1]), np.float32)
            of_row[is_row] = embedded
            counts = np.maximum((rows >= 0).sum(axis=1, keepdims=True), 1)
            means.append(of_row[where.reshape(rows.shape)].sum(axis=1) / counts)
    except (StoreError, OSError) as error:
        raise Unavailable(f"Rows of the store cannot be read: {' '.join(str(error).split())}") from error
    return np.concatenate(means) if means else np.zeros((0, 1), np.float32)


def last_norm(visual: "nn.Module") -> Any:
    """The layer norm behind a tower's last block, which with its projection turns one vector into an embedding.

    Raises
    ------
    Unavailable
        When the tower pools its tokens by attention, so that no vector alone becomes an embedding.
    """
    if getattr(visual, "attn_pool", None) is not None or not hasattr(visual, "ln_post"):
        raise Unavailable("This tower pools all its tokens by attention: no vector alone has a place in CLIP's space.")
    return visual.ln_post


def embed_vectors(visual: "nn.Module", vectors: "Tensor") -> Floats:
    """Unit embeddings `(n, e)` of `(n, d)` vectors of the stream by the tower's last layer norm and projection.

    After the last block that is what the tower itself does with its class token; of an earlier block it is the logit
    lens, which skips the blocks in between.

    Raises
    ------
    Unavailable
        As `last_norm`.
    """
    import torch
    from torch.nn.functional import normalize

    norm = last_norm(visual)
    with torch.inference_mode():
        device = next(visual.parameters()).device
        stream = norm(vectors.to(device, torch.float32))
        projection = visual.proj
        embedded = stream if projection is None else stream @ projection.float()
        found: Floats = normalize(embedded, dim=-1).cpu().numpy()
    return found
