"""`thresher compare`: the statistics of several runs in one table."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .command import FolderPath, echo, edge, to_json

if TYPE_CHECKING:
    from .analysis.beside import RunNumbers

_RUNS_A_TABLE = 5
_NOTHING = "-"


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=FolderPath())
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout.")
@edge
def compare(runs: tuple[Path, ...], as_json: bool) -> None:
    """Show the statistics of several RUNs in one table.

    L0, explained variance, dead features, the ultra-low-density cluster with its coherence, label entropy: what `stats`
    wrote. A sweep stands for those of its runs that have statistics. (`sweep` compares what was measured while
    training.)

    \b
    Example: thresher compare run-x16 run-x64
    """  # noqa: D301 (\b is the character that click asks for)
    from .analysis.beside import compare_runs

    numbers = compare_runs(runs)
    echo(to_json({"runs": numbers}) if as_json else of_comparison(numbers))


def of_comparison(runs: "list[RunNumbers]") -> str:
    """The runs as columns, their numbers as lines; so many runs a table."""
    from .analysis.description import table_lines

    tables = []
    for first in range(0, len(runs), _RUNS_A_TABLE):
        some = runs[first : first + _RUNS_A_TABLE]
        columns = [_column(run) for run in some]
        lines = [[name, *(column[name] for column in columns)] for name in columns[0]]
        tables.append("\n".join(f"  {line}" for line in table_lines(["", *(run.name for run in some)], lines)))
    return "\n\n".join(tables)


def _column(run: "RunNumbers") -> dict[str, str]:
    uld = f"{run.n_uld:,}" if run.n_uld else "none"
    return {
        "variant": run.variant,
        "features": f"{run.d_sae:,}",
        "expansion": _short(run.expansion),
        "rows": f"{run.n_rows:,} ({run.split})",
        "explained variance": _short(run.explained_variance),
        "  on held-out rows": _short(run.held_out_explained_variance),
        "normalised MSE": _short(run.normalized_mse),
        "L0, mean": _short(run.l0),
        "L0, largest of a row": f"{run.max_l0:,}",
        "  of it in the ULD cluster": _percent(run.uld_of_max_l0),
        "dead features": f"{run.n_dead:,} ({_percent(run.share_dead)})",
        "ULD features": uld,
        "  of the alive": _percent(run.uld_of_alive),
        "  of all firings": _percent(run.uld_of_firings),
        "  of activation mass": _percent(run.uld_of_mass),
        "coherence of the ULD cluster": _short(run.coherence),
        "  of the others": _short(run.coherence_rest),
        "  of random directions (p99)": _short(run.coherence_chance),
        "median label entropy (nats)": _short(run.median_label_entropy),
        "  over features": f"{run.n_entropy:,}",
    }


def _short(value: float) -> str:
    return _NOTHING if value != value else f"{value:.4g}"


def _percent(value: float) -> str:
    return _NOTHING if value != value else f"{value:.1%}"
