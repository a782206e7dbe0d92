"""Names of features, as `RUN/names.tsv` holds them.

One line a feature below the header `feature`, `name`, `score`, `method`, in any order, parted by tabs; other columns
are passed over. People edit such files, and receive them from others: a line that makes no sense is left out, and
counted.
"""

import math
from dataclasses import dataclass
from pathlib import Path

NAMES_TSV = "names.tsv"
LONGEST_NAME = 200
MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class Name:
    """What a feature is called."""

    name: str
    score: float | None
    """How well the name fits, by the method's own measure; None where the file gives none."""
    method: str
    """How the name was found."""


def read_names(run_path: Path, d_sae: int) -> tuple[dict[int, Name], str | None]:
    """Names by feature, ascending; and what a visitor must know of the file, None where all is well.

    Parameters
    ----------
    run_path
        The run directory; without `names.tsv` there are no names.
    d_sae
        Lines of other features than 0 to d_sae - 1 are left out. Of two lines of a feature the first stands.
    """
    path = run_path / NAMES_TSV
    try:
        if path.stat().st_size > MOST_BYTES:
            return {}, f"{NAMES_TSV} is larger than {MOST_BYTES >> 20} MiB and is not read."
        lines = path.read_bytes().decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return {}, None
    except OSError as error:
        return {}, f"{NAMES_TSV} cannot be read ({error.strerror})."
    header = [cell.strip() for cell in lines[0].lstrip("\ufeff").split("\t")]
    if "feature" not in header or "name" not in header:
        return {}, f"{NAMES_TSV} is not read: its first line must name the columns feature and name, parted by a tab."
    place = {column: header.index(column) for column in ("feature", "name", "score", "method") if column in header}
    found: dict[int, Name] = {}
    n_left_out = 0
    for line in lines[1:]:
        if not line.strip():
            continue
        cells = line.split("\t")
        values = {column: cells[at].strip() for column, at in place.items() if at < len(cells)}
        feature, name = values.get("feature", ""), printable(values.get("name", ""))[:LONGEST_NAME]
        is_one = feature.isascii() and feature.isdigit() and len(feature) <= 9 and int(feature) < d_sae
        if not is_one or int(feature) in found:
            n_left_out += 1
        elif name:
            score, method = _score(values.get("score", "")), printable(values.get("method", ""))[:LONGEST_NAME]
            found[int(feature)] = Name(name, score, method)
    problem = f"{n_left_out:,} lines of {NAMES_TSV} are left out: they name no feature of this run, or one again."
    return dict(sorted(found.items())), problem if n_left_out else None


def printable(text: str) -> str:
    """One line of text without control characters, marks that turn its direction, or lone surrogates."""
    kept = text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
    return " ".join(kept.split())


def _score(text: str) -> float | None:
    try:
        score = float(text)
    except ValueError:
        return None
    return score if math.isfinite(score) else None
