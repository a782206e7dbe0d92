"""Damages stores in every place, one at a time: `verify` finds each, our reader refuses it or gives the right values.

Kinds of file are hit equally often, however few and small their files are: chunks outweigh the rest by far.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from thresher.store.errors import StoreError
from thresher.store.format import Site
from thresher.store.objects import open_objects
from thresher.store.parts import add_part, next_part
from thresher.store.reader import open_store
from thresher.store.verify import verify_store

KINDS = {
    "activation chunk": r"layers/.*/c/.*",
    "rows chunk": r"rows/.*/c/.*",
    "keys chunk": r"images/.*/c/.*",
    "thumbnail chunk": r"thumbs/.*/c/.*",
    "thumbnail zarr.json": r"thumbs/\d+/.*zarr\.json",
    "zarr.json": r"(.*/)?zarr\.json",
    "metadata record": r"commits/metadata\.json",
    "part record": r"commits/parts/.*",
    "chunk record": r"commits/.*",
}
"""The first pattern that a file's name matches is its kind; below `parts/<n>/` the rest of the name counts."""

# The reader takes the place of a thumbnail from the commit record. Only other zarr readers open these documents.
UNUSED_BY_THE_READER = {"thumbnail zarr.json"}


def kind_of(name: str) -> str:
    name = re.sub(r"^parts/\d+/", "", name)
    return next(kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, name))


@dataclass
class Victim:
    """A store to damage, and what reading it must give."""

    path: Path
    names: dict[str, list[str]]
    """Files by kind."""
    values: list[np.ndarray]
    values_before_append: list[np.ndarray]
    strangers: list[tuple["Victim", str]] = field(default_factory=list)
    """Files of the other stores."""

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    @contextmanager
    def spoiling(self, *names: str) -> Iterator[None]:
        """Give these files back their bytes at the end."""
        kept = {name: self.read(name) for name in names}
        yield
        for name, data in kept.items():
            (self.path / name).write_bytes(data)


def read_all(path: Path, n_parts: int | None = None) -> list[np.ndarray]:
    """Everything that a store gives its readers."""
    store = open_store(path, n_parts=n_parts)
    n = store.n_rows
    found = [store.activations(site).read(0, n).view(np.uint16) for site in store.sites]
    found += [store.labels(0, n), store.images(0, n), store.valid(0, n), store.tokens(0, n)]
    found += [np.array(store.keys(range(n))), np.array([store.thumbnail(row) for row in range(n)], object)]
    found += [np.array([(bad.image, bad.key, bad.reason) for bad in store.unreadable], object)]
    found += [store.rows_of(np.arange(store.n_valid)), np.array(store.label_names), np.array(store.fingerprint)]
    return found


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def victims(make_store) -> list[Victim]:
    cls = make_store(40, 4, name="cls.zarr", rows_per_chunk=16, invalid=(5,))
    patch = make_store(12, 4, name="patch.zarr", rows_per_chunk=8, tokens=3, invalid=(9,), seed=1)
    zstd = make_store(40, 4, name="zstd.zarr", rows_per_chunk=16, codec="zstd", sites=(Site(1), Site(2)), seed=2)
    parts = make_store(20, 4, name="parts.zarr", rows_per_chunk=16, seed=3)
    for n in (1, 2):
        place = next_part(open_objects(parts.path))
        make_store(10, 4, place=place.url, rows_per_chunk=16, key_prefix=f"more {n} ", seed=3 + n, invalid=(n,))
        add_part(open_objects(parts.path), place)
    found = []
    for made in (cls, patch, zstd, parts):
        names: dict[str, list[str]] = {}
        for file in sorted(made.path.rglob("*")):
            if file.is_file():
                name = file.relative_to(made.path).as_posix()
                names.setdefault(kind_of(name), []).append(name)
        n_parts = len(names.get("part record", ())) + 1
        found.append(Victim(made.path, names, read_all(made.path), read_all(made.path, max(1, n_parts - 1))))
    for victim in found:
        victim.strangers = [
            (other, name) for other in found if other is not victim for names in other.names.values() for name in names
        ]
    assert set().union(*(victim.names for victim in found)) == set(KINDS)
    return found


Spoil = Callable[[Victim, str, np.random.Generator], list[str]]
"""Damages a file, perhaps together with another; gives the names of those it touched, none if nothing came of it."""


def _edit(change: Callable[[bytearray, int, np.random.Generator], None]) -> Spoil:
    def spoil(victim: Victim, name: str, rng: np.random.Generator) -> list[str]:
        data = bytearray(victim.read(name))
        change(data, int(rng.integers(len(data))), rng)
        (victim.path / name).write_bytes(data)
        return [name]

    return spoil


def _change(data: bytearray, at: int, rng: np.random.Generator) -> None:
    data[at] ^= int(rng.integers(1, 256))


def _insert(data: bytearray, at: int, rng: np.random.Generator) -> None:
    data.insert(at, int(rng.integers(256)))


def _remove(data: bytearray, at: int, rng: np.random.Generator) -> None:
    del data[at]


def _empty(data: bytearray, at: int, rng: np.random.Generator) -> None:
    data.clear()


def _delete(victim: Victim, name: str, rng: np.random.Generator) -> list[str]:
    (victim.path / name).unlink()
    return [name]


def _swap(victim: Victim, name: str, rng: np.random.Generator) -> list[str]:
    """Exchange two files of one kind that differ."""
    others = [other for other in victim.names[kind_of(name)] if victim.read(other) != victim.read(name)]
    if not others:
        return []
    other = others[int(rng.integers(len(others)))]
    mine, theirs = victim.read(name), victim.read(other)
    (victim.path / name).write_bytes(theirs)
    (victim.path / other).write_bytes(mine)
    return [name, other]


def _replace(victim: Victim, name: str, rng: np.random.Generator) -> list[str]:
    """Put a file of another store in its place, of the same kind and with other bytes."""
    theirs = [other.read(stranger) for other, stranger in victim.strangers if kind_of(stranger) == kind_of(name)]
    theirs = [data for data in theirs if data != victim.read(name)]
    if not theirs:
        return []
    (victim.path / name).write_bytes(theirs[int(rng.integers(len(theirs)))])
    return [name]


SPOILS: dict[str, Spoil] = {
    "byte changed": _edit(_change),
    "byte inserted": _edit(_insert),
    "byte removed": _edit(_remove),
    "emptied": _edit(_empty),
    "deleted": _delete,
    "swapped": _swap,
    "from another store": _replace,
}


@dataclass
class Outcome:
    """Of one damage."""

    is_found: bool
    """By `verify`."""
    reader: str
    """`refuses`, `right` or `wrong`."""


def outcome(victim: Victim, name: str, spoil: Spoil, rng: np.random.Generator) -> Outcome | None:
    partner = [other for other in victim.names[kind_of(name)]] if spoil is _swap else [name]
    with victim.spoiling(*partner):
        if not spoil(victim, name, rng):
            return None
        try:
            is_found = bool(verify_store(victim.path, threads=1).problems)
        except StoreError:
            is_found = True
        try:
            values = read_all(victim.path)
        except StoreError:
            return Outcome(is_found, "refuses")
        # Without its last part's record a store is what it was before that part was added.
        is_right = same(values, victim.values) or (
            kind_of(name) == "part record" and same(values, victim.values_before_append)
        )
        return Outcome(is_found, "right" if is_right else "wrong")


def run(victims: list[Victim], how: str, n: int, seed: int) -> dict[str, Counter[str]]:
    """Counts by kind of file: damages, found by verify, what the reader did."""
    rng = np.random.default_rng(seed)
    kinds = list(KINDS)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    done = 0
    while done < n:
        kind = kinds[done % len(kinds)]
        holders = [victim for victim in victims if kind in victim.names]
        victim = holders[int(rng.integers(len(holders)))]
        name = victim.names[kind][int(rng.integers(len(victim.names[kind])))]
        result = outcome(victim, name, SPOILS[how], rng)
        if result is None:
            if how == "from another store" and kind == "part record":
                done += 1  # only one of these stores has parts
            continue
        done += 1
        counts[kind].update(damaged=1, found=int(result.is_found), **{result.reader: 1})
        assert result.is_found, f"verify misses {name} of {victim.path.name}, {how} (seed {seed}, number {done})"
        assert result.reader != "wrong", f"reading is wrong: {name} of {victim.path.name}, {how} (number {done})"
    return counts


def print_table(how: str, counts: dict[str, Counter[str]]) -> None:
    print(f"\n{how:22}{'damaged':>9}{'found by verify':>17}{'reader refuses':>16}{'reader is right':>17}")
    total: Counter[str] = Counter()
    for kind, count in counts.items():
        total.update(count)
        print(f"  {kind:20}{count['damaged']:9}{count['found']:17}{count['refuses']:16}{count['right']:17}")
    print(f"  {'all':20}{total['damaged']:9}{total['found']:17}{total['refuses']:16}{total['right']:17}")


def _require_explained(how: str, counts: dict[str, Counter[str]]) -> None:
    """The reader may be right on a damaged store only where it has no use for what is damaged."""
    may_be_right = UNUSED_BY_THE_READER | ({"part record"} if how == "deleted" else set())
    assert {kind for kind, count in counts.items() if count["right"]} <= may_be_right


@pytest.mark.parametrize("how", SPOILS)
def test_a_sample_of_damages_is_found_by_verify_and_never_read_as_data(victims, how):
    _require_explained(how, run(victims, how, 60 if how == "byte changed" else 9, seed=20))


@pytest.mark.faults
@pytest.mark.parametrize("how", SPOILS)
def test_every_damage_is_found_by_verify_and_never_read_as_data(victims, how, capsys):
    counts = run(victims, how, 1000 if how == "byte changed" else 100, seed=7)
    with capsys.disabled():
        print_table(how, counts)
    _require_explained(how, counts)
