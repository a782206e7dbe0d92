"""Candidate phrases for names of features, each once, and where they come from.

Phrases are told apart without regard to case, as CLIP's tokenizers do. Sources are taken in the order given, so a
phrase that several have counts for the first.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np

from ...harvest.captions import class_captions
from ...harvest.images import ImageSet

LONGEST_PHRASE = 200
"""Characters; CLIP's text towers read 77 tokens at most."""
_MOST_CAPTIONED = 50_000
"""Images whose captions are read: captions of a web-scale set would be a vocabulary as large as the set."""


@dataclass(frozen=True)
class Source:
    """What one source gave."""

    name: str
    n_phrases: int
    """Phrases that no source before it has."""
    n_blank: int
    n_repeated: int
    """Phrases that it, or a source before it, had already."""
    n_too_long: int


@dataclass(frozen=True)
class Vocabulary:
    """Candidate phrases, each once, in the order of their sources."""

    phrases: tuple[str, ...]
    sources: tuple[Source, ...]

    def __len__(self) -> int:
        return len(self.phrases)

    @cached_property
    def sha256(self) -> str:
        """Digest of the phrases in their order."""
        digest = hashlib.sha256()
        for phrase in self.phrases:
            digest.update(phrase.encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()

    def source_of(self, phrase: int) -> str:
        """Name of the source that phrase number `phrase` counts for."""
        edges = np.cumsum([source.n_phrases for source in self.sources])
        return self.sources[int(np.searchsorted(edges, phrase, side="right"))].name


def load_vocabulary(
    sources: Sequence[str],
    *,
    file: Path | str | None = None,
    labels: Sequence[str] = (),
    captions: Iterable[str] = (),
) -> Vocabulary:
    """Join phrases of some sources.

    Parameters
    ----------
    sources
        Words of `options.SOURCES`.
    file
        A file of phrases, one a line; its phrases come first.
    labels, captions
        What the sources of these names give.

    Raises
    ------
    ValueError
        When the file is not UTF-8, or nothing is left.
    FileNotFoundError
        When there is no such file.
    """
    given = {} if file is None else {str(file): file_phrases(Path(file))}
    for name in sources:
        if name == "labels":
            given[name] = iter(class_captions(labels, "{}"))
        elif name == "captions":
            given[name] = iter(captions)
        elif name == "classes":
            given[name] = iter(class_names())
        elif name == "nouns":
            given[name] = iter(nouns())
        else:
            raise ValueError(f"vocabulary {name!r} is none of labels, captions, classes, nouns.")
    phrases: dict[str, str] = {}
    counted = tuple(_take(name, lines, phrases) for name, lines in given.items())
    if not phrases:
        raise ValueError(f"the vocabulary ({', '.join(given) or 'no source'}) holds no phrase: name another.")
    return Vocabulary(tuple(phrases.values()), counted)


def _take(name: str, lines: Iterable[str], phrases: dict[str, str]) -> Source:
    """Add a source's phrases to those there are, by their text without case."""
    before, n_blank, n_repeated, n_too_long = len(phrases), 0, 0, 0
    for line in lines:
        phrase = cleaned(line)
        key = phrase.casefold()
        if not phrase:
            n_blank += 1
        elif len(phrase) > LONGEST_PHRASE:
            n_too_long += 1
        elif key in phrases:
            n_repeated += 1
        else:
            phrases[key] = phrase
    return Source(name, len(phrases) - before, n_blank, n_repeated, n_too_long)


def cleaned(line: str) -> str:
    """A phrase with single blanks and nothing unprintable."""
    kept = line if line.isprintable() else "".join(c if c.isprintable() else " " for c in line)
    return " ".join(kept.split())


def file_phrases(path: Path) -> Iterator[str]:
    """Lines of a file of phrases; `ValueError` at the first that is not UTF-8."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise ValueError(
                    f"{path} is not UTF-8 (line {number:,}): save it as UTF-8 text, one phrase a line."
                ) from None


def nouns() -> list[str]:
    """The bundled English nouns, in the order in which CLIP's tokenizer learnt them: frequent ones first."""
    return files(__package__).joinpath("nouns.txt").read_text(encoding="utf-8").split("\n")[:-1]


def class_names() -> list[str]:
    """ImageNet's class names as open_clip has them."""
    from open_clip import IMAGENET_CLASSNAMES

    return list(IMAGENET_CLASSNAMES)


def image_captions(images: ImageSet, seed: int = 0) -> list[str]:
    """Distinct captions of a set of images, the commonest first; of a large set those of a random 50,000 images."""
    n = images.n_images
    chosen = np.arange(n)
    if n > _MOST_CAPTIONED:
        chosen = np.sort(np.random.default_rng(seed).choice(n, _MOST_CAPTIONED, replace=False))
    counts: dict[str, int] = {}
    for image in chosen.tolist():
        if caption := images.caption(image):
            counts[caption] = counts.get(caption, 0) + 1
    return sorted(counts, key=lambda caption: -counts[caption])
