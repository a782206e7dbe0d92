"""Names of classes: WordNet ids, label files, labels written as words."""

import gzip
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NO_LABEL = -1

_WNID = re.compile(r"n\d{8}")


def class_name(folder: str) -> str:
    """Name of the class that a folder holds: the WordNet noun where the folder is a WordNet 3.0 id, else the folder.

    `n01440764` is `tench`. The thousand classes of ImageNet-1k carry open_clip's curated names.
    """
    return _wordnet().get(folder, folder) if _WNID.fullmatch(folder) else folder


def class_names(folders: Iterable[str]) -> list[str]:
    """Name of each class, in order."""
    return [class_name(folder) for folder in folders]


def labels_from_words(words: Sequence[str]) -> tuple[NDArray[np.int32], list[str] | None]:
    """Labels and classes of a column of labels; an empty word is no label.

    Parameters
    ----------
    words
        One an image: class numbers (then they are the labels), or words (then the labels are their ranks in sorted
        order, as with class folders).

    Returns
    -------
    labels, classes
        `(n,)`, -1 where there is none; and the classes' words, or None where the column holds numbers or nothing.

    Raises
    ------
    ValueError
        On a class number below -1 or above 2^31 - 1.
    """
    if all(re.fullmatch(r"-?\d+|", word.strip()) for word in words):
        numbers = [int(word) if word.strip() else NO_LABEL for word in words]
        for number in numbers:
            if not NO_LABEL <= number < 2**31:
                raise ValueError(f"label {number} is no class number; use 0 and up, or -1 for no label.")
        return np.array(numbers, np.int32), None
    classes = sorted(set(words) - {""})
    rank = {word: i for i, word in enumerate(classes)} | {"": NO_LABEL}
    return np.array([rank[word] for word in words], np.int32), classes


def unnamed_note(names: Sequence[str] | None) -> str | None:
    """What to tell the user where WordNet ids are left among the names: captions would carry the id."""
    left = [name for name in names or [] if _WNID.fullmatch(name)]
    if not left:
        return None
    return (
        f"{len(left)} class folders look like WordNet ids but are no noun of WordNet 3.0 (first: {left[0]}); "
        "name them with --label-names."
    )


def read_label_names(path: str | Path, classes: Sequence[str] | None, labels: NDArray[np.int32]) -> list[str]:
    """Names of the classes from a user's file.

    Parameters
    ----------
    path
        Text with one name a line in class order; text with lines `folder<TAB>name`; or JSON: a list of names, an object
        from folder (or class number) to name, or ImageNet's `{"0": ["n01440764", "tench"], ...}`.
    classes
        The folders or words that the labels stand for, in class order; None where labels are bare numbers.
    labels
        `(n_images,)`, -1 where there is none.

    Raises
    ------
    ValueError
        When the file cannot be read so, or does not name every class.
    """
    path = Path(path)
    n_classes = len(classes) if classes is not None else int(labels.max(initial=NO_LABEL)) + 1
    given = _parse_names(path)
    if isinstance(given, list):
        if len(given) < n_classes or (classes is not None and len(given) != n_classes):
            raise ValueError(f"{path} names {len(given)} classes and the images have {n_classes}.")
        return given
    keys = list(classes) if classes is not None else [str(i) for i in range(n_classes)]
    missing = [key for key in keys if key not in given]
    if missing and all(str(i) in given for i in range(n_classes)):
        keys = [str(i) for i in range(n_classes)]
    elif missing:
        raise ValueError(f"{path} has no name for {len(missing)} of {n_classes} classes (first: {missing[0]!r}).")
    return [given[key] for key in keys]


def _parse_names(path: Path) -> list[str] | dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}.") from error
    if path.suffix.lower() == ".json":
        return _parse_json_names(path, text)
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} holds no names.")
    pairs = [line.split("\t", 1) for line in lines]
    if all(len(pair) == 2 for pair in pairs):
        return {folder.strip(): name.strip() for folder, name in pairs}
    return [line.strip() for line in lines]


def _parse_json_names(path: Path, text: str) -> list[str] | dict[str, str]:
    expected = f"{path} should hold a JSON list of names, or an object from folder or class number to name"
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{expected}: {error}.") from error
    if isinstance(given, list) and all(isinstance(name, str) for name in given):
        return given
    if isinstance(given, dict):
        # ImageNet's class index pairs each id with its name
        names = {key: name[-1] if isinstance(name, list) and name else name for key, name in given.items()}
        if all(isinstance(name, str) for name in names.values()):
            return names
    raise ValueError(f"{expected}.")


@cache
def _wordnet() -> dict[str, str]:
    data = files(__package__).joinpath("wordnet.tsv.gz").read_bytes()
    return dict(line.split("\t") for line in gzip.decompress(data).decode().splitlines())
