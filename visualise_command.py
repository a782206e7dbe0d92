"""`thresher visualise`: pictures of features, made by optimisation and checked."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .analysis.visualising.options import VisualiseOptions
from .command import FolderPath, GroupedCommand, echo, edge, given, options_of, to_json
from .progress import ConsoleReporter, format_s

if TYPE_CHECKING:
    from .analysis.visualising.visualise import VisualiseResult


@click.command(cls=GroupedCommand)
@click.argument("run", type=FolderPath())
@options_of(VisualiseOptions)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@click.pass_context
@edge
def visualise(context: click.Context, run: Path, as_json: bool, quiet: bool, **_: Any) -> None:
    """Make pictures that show what RUN's features look for.

    A picture is optimised until its feature is as active as it gets, then saved, read back and checked: activation
    beside the largest on real images, rank among all features, what is left after JPEG, blur and crops, agreement of
    the seeds, nearness to the feature's own images. RUN/visualisations holds the pictures and visualisations.tsv,
    which says of each whether it passed, and why not. The same command again goes on where it was stopped.

    \b
    Example: thresher visualise run-1 --features 7,100-120
    Example: thresher visualise run-1 --features top:16 --steps 512
    Example: thresher visualise run-1 --features 7 --from-image
    """  # noqa: D301 (\b is the character that click asks for)
    from .analysis.visualising.visualise import visualise as run_visualise

    result = run_visualise(run, VisualiseOptions(**given(context, VisualiseOptions)), ConsoleReporter(quiet=quiet))
    echo(to_json(result) if as_json else of_visualise(result))


def of_visualise(result: "VisualiseResult") -> str:
    """How many were made, where they are, and how many passed."""
    n, kept = result.n_made, f", {result.n_kept:,} were there from before" if result.n_kept else ""
    each = f" ({result.seconds / n:.3g} s each)" if n else ""
    return "\n".join(
        [
            f"{result.folder}: pictures of {n:,} features made in {format_s(result.seconds)}{each}{kept}.",
            f"{result.checked.path}: {result.checked.n_passed:,} of {result.checked.n_checked:,} passed.",
            *(f"  {line}" for line in result.checked.lines()),
        ]
    )
