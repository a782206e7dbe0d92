"""`thresher explore`: the web app in which a run's features are browsed."""

from pathlib import Path
from typing import Any

import click

from .analysis.explorer.options import ExploreOptions
from .command import FolderPath, edge, given, options_of
from .progress import ConsoleReporter


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=FolderPath())
@options_of(ExploreOptions)
@click.option("--no-browser", is_flag=True, help="Only say the address.")
@click.option("--quiet", is_flag=True, help="Say nothing but the address.")
@click.pass_context
@edge
def explore(context: click.Context, runs: tuple[Path, ...], no_browser: bool, quiet: bool, **_: Any) -> None:
    """Browse the features of one or more RUNs in a web page on this machine.

    A run needs `thresher stats` first. Several runs of one store can be compared. Ctrl-C ends it.

    \b
    Example: thresher explore run-1
    Example: thresher explore run-x16 run-x64 --port 9000 --no-browser
    """  # noqa: D301 (\b is the character that click asks for)
    from .analysis.explorer.serve import explore as serve

    options = ExploreOptions(**given(context, ExploreOptions))
    serve(runs, options, opens_browser=not no_browser, reporter=ConsoleReporter(quiet=quiet))
