"""Phrases as points in CLIP's space, text's mean removed; embedded once and kept below `RUN/naming/`.

CLIP keeps images and texts apart, and what all texts share would drown what tells them apart: the mean over texts is
taken from each (Bhalla et al., SpLiCE, NeurIPS 2024). A vocabulary too short to have a mean of its own is centred
together with a thousand bundled nouns.

Shapes: V phrases, R random phrases, n directions, e the length of an embedding.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from ...harvest.captions import CAPTION, embed_captions
from ...harvest.vision import LoadedClip, weights_sha256
from ...progress import Reporter
from ...train.run_dir import remove
from .kept_rows import are_whole, keep, kept_rows
from .vocabulary import Vocabulary, nouns

N_RANDOM = 1000
_CAPTIONS_AT_ONCE = 4096
"""That a kill may cost, and that are in memory together."""
_PHRASES_AT_ONCE = 8192

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TextSpace:
    """Unit text embeddings of a vocabulary, and what they are centred by and compared with.

    Parameters
    ----------
    phrases
        `(V,)`.
    raw
        `(V, e)` float32, unit: means over the templates, not centred. A file's memory where there are many.
    mean
        `(e,)`: mean of unit embeddings, which `unit` and `random` lack.
    random
        `(R, e)` float32, unit and centred: random phrases, the chance that a name's scores are held against. Drawn
        from the vocabulary; of a vocabulary of fewer than 1,000 phrases from it and from bundled nouns.
    random_phrases
        `(R,)`.
    """

    phrases: tuple[str, ...]
    raw: Floats
    mean: Floats
    random: Floats
    random_phrases: tuple[str, ...]
    templates: str

    def unit(self, ids: NDArray[np.integer] | slice) -> Floats:
        """Unit centred embeddings `(k, e)` of some phrases."""
        return centred_unit(np.asarray(self.raw[ids]), self.mean)

    def nearest(self, directions: Floats, k: int, *, centred: bool = True) -> tuple[NDArray[np.int64], Floats]:
        """The `k` phrases of largest cosine with each direction, the largest first; of equal ones the first.

        Parameters
        ----------
        directions
            `(n, e)`, of any length; a row of zeros has cosine 0 with every phrase.
        centred
            Against centred phrases; without, against phrases as CLIP embeds them.

        Returns
        -------
        ids, cosines
            `(n, k)` each; `(n, V)` where the vocabulary is shorter.
        """
        wanted = unit_rows(directions)
        k = min(k, len(self.phrases))
        ids, cosines = np.zeros((len(wanted), 0), np.int64), np.zeros((len(wanted), 0), np.float32)
        for start in range(0, len(self.phrases), _PHRASES_AT_ONCE):
            stop = min(start + _PHRASES_AT_ONCE, len(self.phrases))
            texts = self.unit(slice(start, stop)) if centred else np.asarray(self.raw[start:stop])
            found = wanted @ texts.T
            # those kept so far come first, and a stable sort leaves the earlier phrase before its equals
            both = np.concatenate((cosines, found), axis=1)
            numbers = np.concatenate((ids, np.broadcast_to(np.arange(start, stop), found.shape)), axis=1)
            order = _largest(both, k)
            ids, cosines = np.take_along_axis(numbers, order, 1), np.take_along_axis(both, order, 1)
        return ids, cosines


def load_text_space(
    run_path: Path,
    clip: LoadedClip,
    vocabulary: Vocabulary,
    *,
    templates: str = "simple",
    device: torch.device | str = "cpu",
    seed: int = 0,
    reporter: Reporter | None = None,
) -> TextSpace:
    """Embed a vocabulary, or read what an earlier call embedded; a call that was killed is gone on with.

    Parameters
    ----------
    templates
        A word of `options.TEMPLATES`; or `caption`, the post's "A photo of a {}." alone.
    seed
        Of the random phrases.

    Raises
    ------
    ValueError
        When the model has no text tower, or its tokenizer cannot be had.
    """
    if not hasattr(clip.model, "encode_text"):
        raise ValueError(f"{clip.source.name} has no text tower, and names are texts: name the features of a CLIP run.")
    reporter, folder = reporter or Reporter(), run_path / "naming"
    folder.mkdir(exist_ok=True)
    key = _key(clip, templates)
    raw = _embedded(folder, clip, vocabulary.phrases, vocabulary.sha256, key, templates, device, reporter)
    generator = np.random.default_rng([seed, 5])
    if len(vocabulary) >= N_RANDOM:
        chosen = np.sort(generator.choice(len(vocabulary), N_RANDOM, replace=False))
        mean = _mean(raw)
        random, random_phrases = np.asarray(raw[chosen]), tuple(vocabulary.phrases[i] for i in chosen.tolist())
    else:
        known = {phrase.casefold() for phrase in vocabulary.phrases}
        others = [noun for noun in nouns() if noun.casefold() not in known]
        drawn = np.sort(generator.choice(len(others), N_RANDOM - len(vocabulary), replace=False))
        added = tuple(others[i] for i in drawn.tolist())
        digest = hashlib.sha256("\n".join(added).encode()).hexdigest()
        random = np.concatenate((raw, _embedded(folder, clip, added, digest, key, templates, device, reporter)))
        random_phrases = vocabulary.phrases + added
        mean = _mean(random)
    return TextSpace(vocabulary.phrases, raw, mean, centred_unit(random, mean), random_phrases, templates)


def centred_unit(vectors: Floats, mean: Floats) -> Floats:
    """Rows of `(n, e)` less a mean, scaled to norm 1; zeros where nothing is left."""
    return unit_rows(vectors - mean)


def unit_rows(vectors: Floats) -> Floats:
    """Rows of `(n, e)` scaled to norm 1; zeros where there is no more than what float32 rounding leaves."""
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Floats = np.where(norm > 1e-6, vectors / np.maximum(norm, 1e-6), 0).astype(np.float32)
    return found


def _largest(values: Floats, k: int) -> NDArray[np.int64]:
    """Places `(n, k)` of the k largest of each row, falling, of equals the first; without sorting whole rows."""
    k = min(k, values.shape[1])
    order = np.empty((len(values), k), np.int64)
    least = np.partition(values, values.shape[1] - k, axis=1)[:, values.shape[1] - k]
    for line, row in enumerate(values):
        places = np.flatnonzero(row >= least[line])
        order[line] = places[np.argsort(-row[places], kind="stable")][:k]
    return order


def filled(phrases: Sequence[str], templates: str) -> list[str]:
    """Every phrase in every template: those of the first phrase first."""
    import open_clip

    fill = {
        "none": (str,),
        "caption": (CAPTION.format,),
        "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
        "openai": open_clip.OPENAI_IMAGENET_TEMPLATES,
    }[templates]
    return [template(phrase) for phrase in phrases for template in fill]


def _key(clip: LoadedClip, templates: str) -> str:
    """What a text embedding depends on beside the phrase."""
    weights = hashlib.sha256()
    # the image tower is most of the model and has no part in a text's embedding
    for name, module in sorted(clip.model.named_children()):
        if name != "visual":
            weights.update(f"{name} {weights_sha256(module)}\n".encode())
    for name, tensor in sorted(clip.model.named_parameters(recurse=False)):
        weights.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return f"{clip.source.name} {weights.hexdigest()} {templates}"


def _embedded(
    folder: Path,
    clip: LoadedClip,
    phrases: Sequence[str],
    sha256: str,
    key: str,
    templates: str,
    device: torch.device | str,
    reporter: Reporter,
) -> Floats:
    """`(V, e)` unit embeddings, of a file that is there or is made."""
    path = folder / f"texts-{hashlib.sha256(f'{key} {sha256}'.encode()).hexdigest()[:16]}.npy"
    found = kept_rows(path, len(phrases), "r")
    if found is None or not are_whole(found).all():
        remove(path)
        _embed(path, clip, phrases, templates, device, reporter)
        found = np.load(path, mmap_mode="r")
    return found


def _embed(
    path: Path, clip: LoadedClip, phrases: Sequence[str], templates: str, device: torch.device | str, reporter: Reporter
) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    raw = kept_rows(temporary, len(phrases), "r+")
    if raw is None:
        e = embed_captions(clip, ["a"], device).shape[1]
        remove(temporary)
        raw = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(phrases), e))
    missing = np.flatnonzero(~are_whole(raw))
    each = max(1, _CAPTIONS_AT_ONCE // len(filled(["a"], templates)))
    with reporter.task("embedding phrases", len(phrases), "phrases", done=len(phrases) - len(missing)) as task:
        for start in range(0, len(missing), each):
            some = missing[start : start + each]
            captions = filled([phrases[i] for i in some.tolist()], templates)
            of_each = embed_captions(clip, captions, device).view(
                len(some), -1, raw.shape[1]
            )  # (phrases, templates, e)
            keep(raw, some, normalize(of_each.sum(dim=1), dim=-1).numpy())
            task.advance(len(some))
    del raw
    os.replace(temporary, path)


def _mean(raw: Floats) -> Floats:
    """Mean over rows `(e,)`, in float64 and a few rows at a time."""
    total = np.zeros(raw.shape[1])
    for start in range(0, len(raw), _PHRASES_AT_ONCE):
        total += raw[start : start + _PHRASES_AT_ONCE].sum(axis=0, dtype=np.float64)
    return (total / len(raw)).astype(np.float32)
