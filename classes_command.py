"""The command `classes`: what the features know of each class."""

from pathlib import Path
from typing import Any

import click

from .analysis.classes_options import ClassesOptions
from .command import FolderPath, echo, edge, given, options_of, to_json
from .progress import ConsoleReporter


@click.command()
@click.argument("run", type=FolderPath())
@click.argument("label", required=False)
@options_of(ClassesOptions)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress on stderr; warnings still.")
@click.pass_context
@edge
def classes(context: click.Context, run: Path, label: str | None, as_json: bool, quiet: bool, **_: Any) -> None:
    """Show what RUN's features know of each class, or of LABEL.

    The features of label entropy 0 of each class, how they divide its rows into parts (feature splitting), and which
    classes share features, beside what chance gives. LABEL is a class's name or number; without it, tables of all
    classes go to RUN too. Reads what `thresher stats RUN` wrote.

    \b
    Example: thresher classes run-1
    Example: thresher classes run-1 zebra
    """  # noqa: D301 (\b is the character that click asks for)
    from .analysis.classes import classes as run_classes
    from .analysis.classes_text import format_classes

    options = ClassesOptions(**given(context, ClassesOptions))
    found = run_classes(run, label, options, ConsoleReporter(quiet=quiet))
    echo(to_json(found.to_json()) if as_json else format_classes(found))
