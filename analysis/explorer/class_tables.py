"""What `thresher classes` wrote of a run: how each class is divided among its own features, and which share some."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..classes import CLASSES_TSV, FEATURES_TSV, PAIRS_TSV
from ..stored_statistics import STATS_JSON

_MOST_BYTES = 128 << 20


@dataclass(frozen=True)
class Part:
    """An own feature of a class, as `class_structure` groups it."""

    feature: int
    n_class: int
    leader: int
    inside: int
    is_part: bool
    n_strongest: int


@dataclass(frozen=True)
class Related:
    """A class that shares features with another."""

    label: int
    n_shared: int
    expected: float
    """Shared by chance."""
    p_adjusted: float
    features: list[int]


@dataclass(frozen=True)
class OneClass:
    """The line of a class in classes.tsv."""

    n_own_features: int
    share_covered: float
    n_parts: int
    effective_parts: float


@dataclass(frozen=True)
class ClassTables:
    """The three files, by label."""

    classes: dict[int, OneClass] = field(default_factory=dict)
    parts: dict[int, list[Part]] = field(default_factory=dict)
    related: dict[int, list[Related]] = field(default_factory=dict)
    problem: str | None = None
    """Why there are none, and what makes them."""


def read_class_tables(run_path: Path) -> ClassTables:
    """The tables of a run; empty with a line that says so where they are not there, damaged or out of date."""
    try:
        if (run_path / CLASSES_TSV).stat().st_mtime_ns < (run_path / STATS_JSON).stat().st_mtime_ns:
            return ClassTables(
                problem=f"{CLASSES_TSV} is older than the statistics: run `thresher classes --overwrite`."
            )
        classes = {
            int(line["label"]): OneClass(
                int(line["n_own_features"]),
                float(line["share_covered"]),
                int(line["n_parts"]),
                float(line["effective_parts"]),
            )
            for line in _lines(run_path / CLASSES_TSV)
        }
        parts: dict[int, list[Part]] = {}
        for line in _lines(run_path / FEATURES_TSV):
            part = Part(
                feature=int(line["feature"]),
                n_class=int(line["n_class"]),
                leader=int(line["leader"]),
                inside=int(line["inside"]),
                is_part=line["is_part"] == "True",
                n_strongest=int(line["n_strongest"]),
            )
            parts.setdefault(int(line["label"]), []).append(part)
        related: dict[int, list[Related]] = {}
        for line in _lines(run_path / PAIRS_TSV):
            shared = int(line["n_shared"]), float(line["expected"]), float(line["p_adjusted"])
            features = [int(feature) for feature in line["features"].split()]
            for here, there in (("a", "b"), ("b", "a")):
                found = Related(int(line[there]), *shared, features)
                related.setdefault(int(line[here]), []).append(found)
    except FileNotFoundError:
        return ClassTables(problem="Parts of classes and classes that share features: run `thresher classes`.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
        return ClassTables(problem=f"What `thresher classes` wrote cannot be read ({reason[:120]}): run it again.")
    return ClassTables(classes, parts, related)


def tree(parts: list[Part]) -> list[tuple[int, Part, list[Part]]]:
    """The groups of a class from the widest down: depth, leader, and the features that double it."""
    leaders = [part for part in parts if part.leader == part.feature]
    known = {part.feature for part in leaders}
    inside: dict[int, list[Part]] = {}
    for part in leaders:
        inside.setdefault(part.inside if part.inside in known else -1, []).append(part)
    doubles: dict[int, list[Part]] = {}
    for part in parts:
        if part.leader != part.feature:
            doubles.setdefault(part.leader, []).append(part)
    found: list[tuple[int, Part, list[Part]]] = []
    seen: set[int] = set()

    def add(groups: list[Part], depth: int) -> None:
        for part in sorted(groups, key=lambda each: (-each.n_class, each.feature)):
            if part.feature not in seen and depth < 64:  # a circle, which no run of `classes` writes
                seen.add(part.feature)
                found.append((depth, part, doubles.get(part.feature, [])))
                add(inside.get(part.feature, []), depth + 1)

    add(inside.get(-1, []), 0)
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path.name} is larger than {_MOST_BYTES >> 20} MiB")
    text = path.read_text("utf-8", "replace").split("\n")
    header = text[0].split("\t")
    return [dict(zip(header, line.split("\t"), strict=True)) for line in text[1:] if line]
