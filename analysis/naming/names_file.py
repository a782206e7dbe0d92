"""Names of features, as `RUN/names.tsv` holds them.

One line a feature below a header, in any order, parted by tabs; `feature` and `name` must be among its columns, others
than those of `Name` are passed over. People edit such files, and receive them from others: a line that makes no sense
is left out, and counted.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...store.files import write_atomically
from ..whole_file import read_whole

NAMES_TSV = "names.tsv"
LONGEST_NAME = 200
MOST_ALTERNATIVES = 8
NAMED, UNNAMED, UNTESTED = STATUSES = ("named", "unnamed", "untested")
NUMBERS = (
    "score",
    "auroc",
    "balanced_accuracy",
    "ablation_z",
    "ablation_percentile",
    "sufficiency_z",
    "n_naming",
    "n_scoring",
    "p_value",
    "q_value",
)
COLUMNS = ("feature", "name", "score", "method", "status", *NUMBERS[1:], "alternatives")
"""As `write_names` orders them."""


@dataclass(frozen=True)
class Name:
    """What a line says of a feature; numbers are None where the file gives none."""

    name: str
    """The phrase that fits best; what the feature is called only where `status` is `named`."""
    score: float | None
    """How well the name fits, 0 to 1."""
    method: str
    """How the name was found."""
    status: str = NAMED
    """One of `STATUSES`; of a file without that column, named."""
    auroc: float | None = None
    balanced_accuracy: float | None = None
    ablation_z: float | None = None
    ablation_percentile: float | None = None
    sufficiency_z: float | None = None
    n_naming: float | None = None
    """Rows that the name was found on."""
    n_scoring: float | None = None
    """Rows that its score is over."""
    p_value: float | None = None
    q_value: float | None = None
    alternatives: tuple[str, ...] = ()
    """The next best phrases."""


def read_names(run_path: Path, d_sae: int) -> tuple[dict[int, Name], str | None]:
    """Names of the named features, ascending; and what a visitor must know of the file. See `read_name_lines`."""
    lines, problem = read_name_lines(run_path, d_sae)
    return {feature: line for feature, line in lines.items() if line.status == NAMED}, problem


def read_name_lines(run_path: Path, d_sae: int) -> tuple[dict[int, Name], str | None]:
    """What is said of features, named or not, ascending; and what a visitor must know of the file, None for nothing.

    Parameters
    ----------
    run_path
        The run directory; without `names.tsv` there are no names.
    d_sae
        Lines of other features than 0 to d_sae - 1 are left out. Of two lines of a feature the first stands.
    """
    path = run_path / NAMES_TSV
    try:
        lines = read_whole(path).decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return {}, None
    except OSError as error:
        return {}, f"{NAMES_TSV} cannot be read ({error.strerror})."
    header = [cell.strip() for cell in lines[0].lstrip("\ufeff").split("\t")]
    if "feature" not in header or "name" not in header:
        return {}, f"{NAMES_TSV} is not read: its first line must name the columns feature and name, parted by a tab."
    place = {
        column: header.index(column)
        for column in ("feature", "name", "method", "status", "alternatives", *NUMBERS)
        if column in header
    }
    found: dict[int, Name] = {}
    n_left_out = 0
    for line in lines[1:]:
        if not line.strip():
            continue
        cells = line.split("\t")
        values = {column: cells[at].strip() for column, at in place.items() if at < len(cells)}
        feature, name = values.get("feature", ""), _short(values.get("name", ""))
        status = values.get("status", NAMED)
        is_one = feature.isascii() and feature.isdigit() and len(feature) <= 9 and int(feature) < d_sae
        if not is_one or int(feature) in found or status not in STATUSES:
            n_left_out += 1
        elif name or status != NAMED:
            others = values.get("alternatives", "")[: (MOST_ALTERNATIVES + 1) * LONGEST_NAME].split(";")
            found[int(feature)] = Name(
                name=name,
                method=_short(values.get("method", "")),
                status=status,
                alternatives=tuple(filter(None, map(_short, others)))[:MOST_ALTERNATIVES],
                **{column: _number(values.get(column, "")) for column in NUMBERS},
            )
    problem = f"{n_left_out:,} lines of {NAMES_TSV} are left out: they name no feature of this run, or one again."
    return dict(sorted(found.items())), problem if n_left_out else None


def write_names(run_path: Path, names: Mapping[int, Name]) -> Path:
    """Write `names.tsv`, a line a feature, ascending; gives its path. What is no number becomes an empty cell."""
    lines = ["\t".join(COLUMNS)]
    for feature, name in sorted(names.items()):
        others = "; ".join(printable(each).replace(";", ",") for each in name.alternatives)
        said = {"feature": str(feature), "alternatives": others}
        said |= {column: printable(getattr(name, column)) for column in ("name", "method", "status")}
        said |= {column: _written(getattr(name, column)) for column in NUMBERS}
        lines.append("\t".join(said[column] for column in COLUMNS))
    path = run_path / NAMES_TSV
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    return path


def printable(text: str) -> str:
    """One line of text without control characters, marks that turn its direction, or lone surrogates."""
    kept = text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
    return " ".join(kept.split())


def _short(text: str) -> str:
    """As it may be shown; of a very long one only the beginning is looked at."""
    return printable(text[: 4 * LONGEST_NAME])[:LONGEST_NAME]


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _written(value: float | None) -> str:
    """Six digits: the scores have no more, and a count below a million is whole."""
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}" if value % 1 else f"{value:.0f}"
