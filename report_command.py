"""`thresher report`: everything known of a run as one page."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .command import FolderPath, echo, edge, to_json
from .progress import ConsoleReporter, format_bytes

if TYPE_CHECKING:
    from .analysis.report import ReportResult


@click.command()
@click.argument("run", type=FolderPath())
@click.option("--overwrite", is_flag=True, help="Replace the report that the run already has.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress on stderr; warnings still.")
@edge
def report(run: Path, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Write all that is known of RUN to one HTML page.

    RUN/report.html needs no network and no other file: every figure in the post's order, every number with its
    definition, interval and the command that made it, and the provenance. The figures are in RUN/figures too, as PNG
    and, for papers, PDF. What evaluate, align and attributes have written is in it; what is missing is said.

    \b
    Example: thresher report run-1
    """  # noqa: D301 (\b is the character that click asks for)
    from .analysis.report import report as write_report

    result = write_report(run, overwrite=overwrite, reporter=ConsoleReporter(quiet=quiet))
    echo(to_json(result) if as_json else of_report(result))


def of_report(result: "ReportResult") -> str:
    """Where the page is, and what it lacks."""
    lines = [f"{result.path}: {result.n_figures} figures, {format_bytes(result.size_bytes)}."]
    return "\n".join([*lines, *(f"  {each.replace('`', '')}" for each in result.absent)])
