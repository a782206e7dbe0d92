"""Known attributes of images as a table: read from a CSV file, or of the embedded pictures; matched to a store by key.

A column of a CSV file is one kind of attribute. Where all its values are true or false (also yes/no, 1/0) it is one
attribute, else each value is one; a cell may hold several values with a separator. An empty cell has none.
"""

import csv
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..store import format as f
from ..store.reader import ActivationStore

QUICKSTART = "quickstart"
_KEY_COLUMNS = ("key", "path")
_TRUE, _FALSE = frozenset(("true", "yes", "1", "t", "y")), frozenset(("false", "no", "0", "f", "n"))
_IMAGES_AT_ONCE = 65_536


@dataclass(frozen=True, kw_only=True)
class AttributeTable:
    """What is known about some images."""

    source: str
    """The file's name, or `quickstart`."""
    keys: list[str]
    """Of each image; bytes that are not UTF-8 as surrogates, as a store gives them."""
    values: list[Mapping[str, Sequence[str]]]
    """Of each image its values by kind."""
    groups: list[str] | None
    """What each image belongs to; None where each is its own."""
    group_column: str | None


def read_table(path: Path, *, key: str | None = None, group: str | None = None, separator: str = "|") -> AttributeTable:
    """Read a CSV file with a line of names, or a `.tsv` one.

    Raises
    ------
    ValueError
        When a column is missing, a line has more cells than names, a key is there twice, or there is nothing to read.
    """
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            names = next(reader, [])
            _check_names(path, names, key, group)
            key_column = key or next((name for name in _KEY_COLUMNS if name in names), names[0])
            kinds = [name for name in names if name not in (key_column, group)]
            if not kinds:
                raise ValueError(f"{path} has no column of attributes beside {key_column!r}")
            lines = [_cells(path, reader.line_num, names, line) for line in reader if line]
        except csv.Error as error:
            raise ValueError(f"{path} is no CSV file at line {reader.line_num}: {error}") from error
    if not lines:
        raise ValueError(f"{path} has names and no line below them")
    keys = [line[key_column] for line in lines]
    seen: set[str] = set()
    for each in keys:
        if each in seen:
            raise ValueError(f"{path} has the key {each!r} twice: give each image one line")
        seen.add(each)
    is_boolean = {kind: _is_boolean([line[kind] for line in lines]) for kind in kinds}
    return AttributeTable(
        source=path.name,
        keys=keys,
        values=[{kind: _values(line[kind], is_boolean[kind], separator) for kind in kinds} for line in lines],
        groups=None if group is None else [line[group] for line in lines],
        group_column=group,
    )


def emoji_table() -> AttributeTable:
    """The attributes of the embedded pictures; all drawings of an emoji are a group."""
    from ..harvest.images import open_images
    from .attributes import emoji_values

    with open_images(QUICKSTART) as images:
        said = [images.metadata(i) for i in range(images.n_images)]
        keys = [os.fsdecode(key) for key in images.keys]
    return AttributeTable(
        source=QUICKSTART,
        keys=keys,
        values=[emoji_values(each) for each in said],
        groups=[each["emoji"] for each in said],
        group_column="emoji",
    )


def lines_of_rows(store: ActivationStore, keys: Sequence[str]) -> NDArray[np.int64]:
    """For each row of a store, which of the keys its image has; -1 for none."""
    line_of = {key: line for line, key in enumerate(keys)}
    line_of_image = []
    for part in store.parts:
        offset, blob = part.array(f.KEY_OFFSET), part.array(f.KEY_BLOB)
        for first in range(0, part.n_images, _IMAGES_AT_ONCE):
            edges = offset.read(first, min(first + _IMAGES_AT_ONCE, part.n_images) + 1).astype(np.int64)
            text = blob.read(int(edges[0]), int(edges[-1])).tobytes()
            places = (edges - edges[0]).tolist()
            named = (os.fsdecode(text[a:b]) for a, b in itertools.pairwise(places))
            line_of_image.append(np.array([line_of.get(key, -1) for key in named], np.int64))
    of_image = np.concatenate(line_of_image)
    step = _IMAGES_AT_ONCE
    return np.concatenate(
        [of_image[store.images(first, min(first + step, store.n_rows))] for first in range(0, store.n_rows, step)]
    )


def _check_names(path: Path, names: list[str], key: str | None, group: str | None) -> None:
    if not names:
        raise ValueError(f"{path} is empty: its first line names the columns")
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise ValueError(f"{path} has two columns {doubled!r}")
    for option, column in (("key", key), ("group", group)):
        if column is not None and column not in names:
            raise ValueError(f"{path} has no {option} column {column!r}; it has {', '.join(names)}")


def _cells(path: Path, line_number: int, names: list[str], line: list[str]) -> dict[str, str]:
    if len(line) > len(names):
        raise ValueError(f"{path} has {len(line)} cells at line {line_number} and {len(names)} columns")
    return dict(zip(names, line + [""] * (len(names) - len(line)), strict=True))


def _is_boolean(cells: list[str]) -> bool:
    said = {cell.strip().lower() for cell in cells} - {""}
    return bool(said) and said <= _TRUE | _FALSE


def _values(cell: str, is_boolean: bool, separator: str) -> tuple[str, ...]:
    if is_boolean:
        return ("true",) if cell.strip().lower() in _TRUE else ()
    return tuple(dict.fromkeys(part for each in cell.split(separator) if (part := each.strip())))
