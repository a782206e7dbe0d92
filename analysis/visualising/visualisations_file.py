"""The checked pictures of a run, as `RUN/visualisations/visualisations.tsv` holds them.

One line a feature below the header, ascending, parted by tabs; a number that is undefined is an empty cell.
`nulls.tsv` beside it has the same columns after `kind` for what pictures are held against, and `checks.json` the share
of each kind that passes, its medians and the rules. People edit such files, and receive them from others: a line that
makes no sense is left out, and counted.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...store.files import write_atomically
from ..naming.names_file import printable
from ..whole_file import read_json, read_whole
from .checks import Checks

FOLDER = "visualisations"
VISUALISATIONS_TSV, NULLS_TSV, CHECKS_JSON = "visualisations.tsv", "nulls.tsv", "checks.json"
CHECKS_FORMAT = "thresher-visualisation-checks"
PASSED, FAILED = "passed", "failed"
COLUMNS = (
    *("feature", "picture", "parametrisation", "seed", "activation", "activation_ratio", "percentile", "rank"),
    *("share_of_code", "l0", "retention_jpeg", "retention_blur", "retention_crop", "seed_agreement"),
    *("transfer_percentile", "verdict", "why", "seed_agreement_raw"),
)
_CHECKS = tuple(field.name for field in fields(Checks))
_COUNTS = ("rank", "l0")
_LONGEST_WORDS = 300


@dataclass(frozen=True, kw_only=True)
class Visualisation:
    """A picture with its checks."""

    feature: int
    """Which it was judged for."""
    picture: str
    """Name of its file in `RUN/visualisations`; empty of one that is not kept."""
    parametrisation: str
    """How it was made."""
    seed: int | None
    checks: Checks
    seed_agreement: float = math.nan
    """Mean cosine of the embeddings of the feature's pictures, less the mean over real images."""
    seed_agreement_raw: float = math.nan
    """The same without taking the mean off."""
    verdict: str = FAILED
    """`passed` or `failed`."""
    why: str = ""
    """The first rule that a failed picture breaks."""

    @property
    def is_passed(self) -> bool:
        """Whether it fulfils every rule."""
        return self.verdict == PASSED

    def cells(self) -> list[str]:
        """Its line."""
        values = vars(self) | vars(self.checks)
        return [_cell(values[column]) for column in COLUMNS]


def write_visualisations(path: Path, lines: Iterable[Visualisation], kinds: Sequence[str] | None = None) -> None:
    """Write a table whole or not at all; with `kinds`, one a line, a first column has them."""
    rows = [list(COLUMNS), *(line.cells() for line in lines)]
    if kinds is not None:
        rows = [[kind, *row] for kind, row in zip(("kind", *kinds), rows, strict=True)]
    write_atomically(path, "".join("\t".join(row) + "\n" for row in rows).encode())


def read_visualisations(run_path: Path, d_sae: int) -> tuple[dict[int, Visualisation], str | None]:
    """Checked pictures by feature, ascending; and what a visitor must know of the file, None where all is well.

    Parameters
    ----------
    run_path
        The run directory; without the file there are none.
    d_sae
        Lines of other features than 0 to d_sae - 1 are left out, and those whose picture is another file than
        `<feature>.webp`. Of two lines of a feature the first stands.
    """
    path = run_path / FOLDER / VISUALISATIONS_TSV
    try:
        lines = read_whole(path).decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return {}, None
    except OSError as error:
        return {}, f"{VISUALISATIONS_TSV} cannot be read ({error.strerror})."
    header = [cell.strip() for cell in lines[0].lstrip("\ufeff").split("\t")]
    missing = [column for column in COLUMNS[:-1] if column not in header]
    if missing:
        return {}, f"{VISUALISATIONS_TSV} is not read: it has no column {missing[0]}."
    found: dict[int, Visualisation] = {}
    n_left_out = 0
    for line in lines[1:]:
        if not line.strip():
            continue
        one = _parsed(dict(zip(header, line.split("\t"), strict=False)), d_sae)
        if one is None or one.feature in found:
            n_left_out += 1
        else:
            found[one.feature] = one
    problem = f"{n_left_out:,} lines of {VISUALISATIONS_TSV} are left out: they make no sense, or name a feature again."
    return dict(sorted(found.items())), problem if n_left_out else None


def read_checks(run_path: Path) -> dict[str, Any] | None:
    """The document of `checks.json`; None where there is none, or it is damaged."""
    try:
        document = read_json(run_path / FOLDER / CHECKS_JSON)
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and document.get("format") == CHECKS_FORMAT else None


def read_nulls(run_path: Path) -> dict[str, list[dict[str, float]]]:
    """Numbers of the lines of `nulls.tsv` by kind and column, NaN undefined; lines that make no sense are left out."""
    try:
        lines = read_whole(run_path / FOLDER / NULLS_TSV).decode("utf-8", "replace").split("\n")
    except OSError:
        return {}
    header = lines[0].split("\t")
    found: dict[str, list[dict[str, float]]] = {}
    for line in lines[1:]:
        cells = dict(zip(header, line.split("\t"), strict=False))
        try:
            numbers = {name: _number(cells[name]) for name in _CHECKS}
            found.setdefault(_printable(cells["kind"]), []).append(numbers)
        except (KeyError, ValueError):
            continue
    return found


def _parsed(cells: dict[str, str], d_sae: int) -> Visualisation | None:
    """One line; None where it makes no sense."""
    values = {name: " ".join(cells.get(name, "").split()) for name in COLUMNS}
    feature, verdict = values["feature"], values["verdict"]
    if not (feature.isascii() and feature.isdigit() and len(feature) <= 9 and int(feature) < d_sae):
        return None
    if verdict not in (PASSED, FAILED) or values["picture"] != f"{int(feature)}.webp":
        return None
    try:
        numbers = {name: _number(values[name]) for name in (*_CHECKS, "seed_agreement", "seed_agreement_raw")}
        checks: dict[str, Any] = {name: int(numbers[name]) if name in _COUNTS else numbers[name] for name in _CHECKS}
        return Visualisation(
            feature=int(feature),
            picture=values["picture"],
            parametrisation=_printable(values["parametrisation"]),
            seed=int(values["seed"]) if values["seed"] else None,
            checks=Checks(**checks),
            seed_agreement=numbers["seed_agreement"],
            seed_agreement_raw=numbers["seed_agreement_raw"],
            verdict=verdict,
            why=_printable(values["why"]),
        )
    except (ValueError, OverflowError):
        return None


def _number(cell: str) -> float:
    value = float(cell) if cell else math.nan
    return value if math.isfinite(value) else math.nan


def _printable(text: str) -> str:
    return printable(text)[:_LONGEST_WORDS]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return "" if value is None else str(value)
