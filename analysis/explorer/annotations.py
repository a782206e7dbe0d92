"""Names, tags, notes and sensitive marks that people put on features, kept in one small file beside the run.

`RUN/annotations.json`:

    {"format": "thresher-annotations", "format_version": 1, "sae_sha256": "2503e1c0...",
     "features": {"12": {"name": "dog ears", "tags": ["dogs"], "note": "only side views", "sensitive": true}}}

What is empty is left out. The file is read again whenever it has changed, and before each change to it, so that several
tabs, servers and machines that share a run do not undo each other's work.
"""

import fcntl
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...store.files import write_atomically
from ..naming.names_file import LONGEST_NAME, printable
from .page import BadQuery, PageError, Unavailable

ANNOTATIONS_JSON = "annotations.json"
FORMAT_NAME, FORMAT_VERSION = "thresher-annotations", 1
MOST_TAGS, LONGEST_TAG, LONGEST_NOTE = 20, 60, 4000
MOST_FEATURES = 20_000
"""Annotated by hand, they are some hundreds; this bounds what a file from elsewhere may bring."""
MOST_BYTES = 16 << 20


class Conflict(PageError):
    """A note or a name was changed elsewhere since the visitor saw it."""

    status = 409


@dataclass(frozen=True)
class Annotation:
    """What people said of one feature."""

    tags: tuple[str, ...] = ()
    """Sorted, without repeats, in lower case."""
    note: str = ""
    sensitive: bool = False
    name: str = ""
    """What people call it, whatever `names.tsv` says; empty for nothing."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is said."""
        return not (self.tags or self.note or self.sensitive or self.name)

    def to_json(self) -> dict[str, Any]:
        """As it is stored: without what is empty."""
        record = {"name": self.name, "tags": list(self.tags), "note": self.note, "sensitive": self.sensitive}
        return {name: value for name, value in record.items() if value}

    @classmethod
    def of_json(cls, record: object) -> "Annotation":
        """Read back; `BadQuery` where it is nothing that may be stored."""
        if not isinstance(record, dict):
            raise BadQuery("an annotation must be an object with name, tags, note and sensitive.")
        name, note, sensitive = record.get("name", ""), record.get("note", ""), record.get("sensitive", False)
        if not isinstance(name, str) or not isinstance(note, str) or not isinstance(sensitive, bool):
            raise BadQuery("of an annotation, name and note must be strings and sensitive true or false.")
        return cls(clean_tags(record.get("tags", [])), clean_note(note), sensitive, clean_name(name))


def clean_tags(tags: object) -> tuple[str, ...]:
    """Tags as they are stored: in lower case, sorted, spaces made one; `BadQuery` where there are too many or too long.

    Commas part tags wherever they are typed or listed, so that none holds one.
    """
    if not isinstance(tags, list | tuple) or not all(isinstance(tag, str) for tag in tags):
        raise BadQuery("tags must be a list of strings.")
    found = {printable(part) for tag in tags for part in tag.lower().split(",")} - {""}
    if len(found) > MOST_TAGS:
        raise BadQuery(f"a feature takes at most {MOST_TAGS} tags, not {len(found)}.")
    for tag in found:
        if len(tag) > LONGEST_TAG:
            raise BadQuery(f"a tag has at most {LONGEST_TAG} characters; {tag[:20]!r}... has {len(tag)}.")
    return tuple(sorted(found))


def clean_note(note: str) -> str:
    """A note as it is stored; `BadQuery` where it is too long."""
    cleaned = "\n".join(printable(line) for line in note.splitlines()).strip("\n")
    if len(cleaned) > LONGEST_NOTE:
        raise BadQuery(f"a note has at most {LONGEST_NOTE:,} characters, not {len(cleaned):,}.")
    return cleaned


def clean_name(name: str) -> str:
    """A name as it is stored: one line; `BadQuery` where it is too long."""
    if len(name) > 4 * LONGEST_NAME or len(cleaned := printable(name)) > LONGEST_NAME:
        raise BadQuery(f"a name has at most {LONGEST_NAME} characters, not {len(name):,}.")
    return cleaned


class Annotations:
    """The annotations of a run; every method may be called from several threads.

    Parameters
    ----------
    run_path
        The run directory. Nothing is written into it before the first change.
    sae_sha256
        Of the run's SAE. What is said of another one's features is not of these; None takes any.
    """

    def __init__(self, run_path: str | Path, sae_sha256: str | None = None) -> None:
        self.path = Path(run_path) / ANNOTATIONS_JSON
        self._sae = sae_sha256
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._features: dict[int, Annotation] = {}
        self._sensitive: frozenset[int] = frozenset()
        self._problem: str | None = None

    @property
    def features(self) -> Mapping[int, Annotation]:
        """What is said, by feature, ascending."""
        return self._read()

    @property
    def sensitive(self) -> frozenset[int]:
        """Features whose pictures are blurred until a visitor shows them."""
        self._read()
        return self._sensitive

    @property
    def problem(self) -> str | None:
        """What a visitor is told where the file cannot be read; None where all is well."""
        self._read()
        return self._problem

    def of(self, feature: int) -> Annotation:
        """What is said of a feature; empty where nothing is."""
        return self._read().get(feature, Annotation())

    def is_sensitive(self, feature: int) -> bool:
        """Whether a feature's pictures are blurred."""
        return feature in self.sensitive

    def tags(self, feature: int) -> list[str]:
        """Tags of a feature, sorted."""
        return list(self.of(feature).tags)

    def note(self, feature: int) -> str:
        """The note on a feature, empty for none."""
        return self.of(feature).note

    def known_tags(self) -> dict[str, int]:
        """Every tag and how many features have it, the most used first."""
        counts: dict[str, int] = {}
        for each in self._read().values():
            for tag in each.tags:
                counts[tag] = counts.get(tag, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def to_json(self) -> dict[str, Any]:
        """The document of the file."""
        return self._document(self._read())

    def change(
        self,
        feature: int,
        *,
        tags: object | None = None,
        note: str | None = None,
        sensitive: bool | None = None,
        name: str | None = None,
        note_before: str | None = None,
        name_before: str | None = None,
    ) -> Annotation:
        """Change what is said of a feature; what is None stays as it is stored.

        Parameters
        ----------
        note_before, name_before
            What the new one was written over; another in the file is kept, and `Conflict` raised.

        Raises
        ------
        BadQuery
            When it is too much to store.
        Unavailable
            When the file cannot be written.
        """

        def changed(stored: dict[int, Annotation]) -> None:
            before = stored.get(feature, Annotation())
            if note is not None and note_before is not None and before.note not in (note_before, clean_note(note)):
                raise Conflict(f"The note on feature {feature} was changed elsewhere meanwhile: reload to see it.")
            if name is not None and name_before is not None and before.name not in (name_before, clean_name(name)):
                raise Conflict(f"The name of feature {feature} was changed elsewhere meanwhile: reload to see it.")
            stored[feature] = Annotation(
                before.tags if tags is None else clean_tags(tags),
                before.note if note is None else clean_note(note),
                before.sensitive if sensitive is None else sensitive,
                before.name if name is None else clean_name(name),
            )

        return self._write(changed).get(feature, Annotation())

    def merge(self, document: object, d_sae: int) -> int:
        """Add the annotations of another file, and give how many features it speaks of.

        Tags are joined, a sensitive mark stays, a note that differs is put under the one that is there, and so is a
        name, where there is another.

        Raises
        ------
        BadQuery
            When it is no such file, or speaks of features that this run does not have: then nothing is added.
        """
        added = _of_document(document, self._sae)
        beyond = [feature for feature in added if feature >= d_sae]
        if beyond:
            raise BadQuery(f"it speaks of feature {beyond[0]}, and this run has {d_sae:,}: it is of another run.")

        def changed(stored: dict[int, Annotation]) -> None:
            for feature, new in added.items():
                old = stored.get(feature, Annotation())
                other = f"Also called {new.name}." if new.name and old.name not in ("", new.name) else ""
                notes = [old.note, *(each for each in (new.note, other) if each and each not in old.note)]
                stored[feature] = Annotation(
                    clean_tags([*old.tags, *new.tags]),
                    clean_note("\n".join(filter(None, notes))),
                    old.sensitive or new.sensitive,
                    old.name or new.name,
                )

        self._write(changed)
        return len(added)

    def _read(self) -> dict[int, Annotation]:
        """What the file holds now; what it last held while it has not changed."""
        with self._lock:
            return self._load()

    def _load(self) -> dict[int, Annotation]:
        try:
            found = os.stat(self.path)
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
        except FileNotFoundError:
            seen = (0, 0, 0)
        except OSError as error:
            self._problem, self._seen = f"{ANNOTATIONS_JSON} cannot be read ({error.strerror}).", None
            return self._features
        if seen == self._seen:
            return self._features
        self._features, self._problem = {}, None
        if seen != (0, 0, 0):
            try:
                if not stat.S_ISREG(found.st_mode):  # of a pipe, reading would wait for ever
                    raise BadQuery("it is no file.")
                self._features = _of_bytes(self.path.read_bytes() if seen[1] <= MOST_BYTES else None, self._sae)
            except (OSError, BadQuery) as error:
                self._problem = f"{ANNOTATIONS_JSON} cannot be read and is left alone: {error}"
        self._seen = seen
        self._sensitive = frozenset(feature for feature, each in self._features.items() if each.sensitive)
        return self._features

    def _write(self, change: Callable[[dict[int, Annotation]], None]) -> dict[int, Annotation]:
        try:
            with self._lock, _held(self.path.with_name(f".{ANNOTATIONS_JSON}.lock")):
                self._seen = None
                stored = dict(self._load())
                change(stored)
                stored = {feature: stored[feature] for feature in sorted(stored) if not stored[feature].is_empty}
                if len(stored) > MOST_FEATURES:
                    raise BadQuery(f"at most {MOST_FEATURES:,} features can be annotated.")
                text = json.dumps(self._document(stored), indent=1, ensure_ascii=False)
                if len(text.encode()) > MOST_BYTES:
                    raise BadQuery(f"annotations take at most {MOST_BYTES >> 20} MiB.")
                if self._problem is not None:
                    self._set_aside()
                write_atomically(self.path, text.encode() + b"\n")
                self._seen = None
                return self._load()
        except OSError as error:
            raise Unavailable(f"{ANNOTATIONS_JSON} cannot be written beside the run ({error.strerror}).") from error

    def _document(self, features: Mapping[int, Annotation]) -> dict[str, Any]:
        said = {str(feature): each.to_json() for feature, each in features.items()}
        of = {} if self._sae is None else {"sae_sha256": self._sae}
        return {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, **of, "features": said}

    def _set_aside(self) -> None:
        """Give a file that cannot be read another name, so that a new one does not take its place."""
        number = 1
        while (aside := self.path.with_name(f"annotations.aside-{number}.json")).exists():
            number += 1
        os.rename(self.path, aside)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a lock file against other writers, of this process too; a file system without locks has none."""
    with open(path, "ab", opener=_opened) as file:
        with suppress(OSError):  # a network file system without locks: changes are still whole, the last one stands
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _opened(path: str, flags: int) -> int:
    """A descriptor for writing; of a pipe an error, where it would wait for a reader for ever."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


def _of_bytes(content: bytes | None, sae_sha256: str | None) -> dict[int, Annotation]:
    if content is None:
        raise BadQuery(f"it is larger than {MOST_BYTES >> 20} MiB.")
    return _of_document(read_document(content), sae_sha256)


def read_document(content: bytes) -> object:
    """The JSON of some bytes; `BadQuery` where they are none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadQuery(f"it is not JSON ({str(error)[:100]}).") from error


def _of_document(document: object, sae_sha256: str | None) -> dict[int, Annotation]:
    """By feature; `BadQuery` where it is not what this version writes."""
    if not isinstance(document, dict) or document.get("format") != FORMAT_NAME:
        raise BadQuery(f"it is no file of annotations: its format must be {FORMAT_NAME}.")
    if document.get("format_version") != FORMAT_VERSION:
        raise BadQuery(f"it is of format version {str(document.get('format_version'))[:20]}; this reads version 1.")
    sae = document.get("sae_sha256")
    if None not in (sae, sae_sha256) and sae != sae_sha256:
        raise BadQuery(f"it is of another SAE ({str(sae)[:12]}), and its features are not those of this run.")
    said = document.get("features")
    if not isinstance(said, dict) or len(said) > MOST_FEATURES:
        raise BadQuery(f"its features must be an object of at most {MOST_FEATURES:,}.")
    found = {}
    for feature, record in said.items():
        if not (feature.isascii() and feature.isdigit() and len(feature) <= 9):
            raise BadQuery(f"{feature[:40]!r} is no feature.")
        found[int(feature)] = Annotation.of_json(record)
    return dict(sorted(found.items()))
