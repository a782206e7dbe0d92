"""`thresher explore`: the web app in which a run's features are browsed."""

from pathlib import Path
from typing import Any

import click

from .analysis.explorer.options import ExploreOptions, ExportOptions
from .command import FolderPath, echo, edge, given, options_of
from .progress import ConsoleReporter


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=FolderPath())
@options_of(ExploreOptions)
@click.option(
    "--export", "export_dir", type=FolderPath(), metavar="DIR", help="Write it as a static site into DIR instead."
)
@options_of(ExportOptions)
@click.option("--no-browser", is_flag=True, help="Only say the address.")
@click.option("--quiet", is_flag=True, help="Say nothing but the address.")
@click.pass_context
@edge
def explore(
    context: click.Context, runs: tuple[Path, ...], export_dir: Path | None, no_browser: bool, quiet: bool, **_: Any
) -> None:
    """Browse the features of one or more RUNs in the browser.

    A run needs `thresher stats RUN` first. Several runs of one store can be compared. Ctrl-C ends it.

    \b
    Example: thresher explore run-1
    Example: thresher explore run-x16 run-x64 --port 9000 --no-browser
    Example: thresher explore run-1 --export site --features shown
    """  # noqa: D301 (\b is the character that click asks for)
    reporter = ConsoleReporter(quiet=quiet)
    of_export, of_server = given(context, ExportOptions), given(context, ExploreOptions)
    if export_dir is not None:
        if of_server:
            raise click.UsageError(f"--{next(iter(of_server)).replace('_', '-')} is of a server: leave out --export.")
        from .analysis.explorer.export import export_site
        from .analysis.explorer.page import PageError

        try:
            export_site(runs, export_dir, ExportOptions(**of_export), reporter)
        except PageError as error:  # damaged files that more than a page needs
            raise click.ClickException(str(error)) from error
        return
    if of_export:
        raise click.UsageError(
            f"--{next(iter(of_export)).replace('_', '-')} is of a static site: give --export DIR too."
        )
    from .analysis.explorer.serve import explore as serve

    options = ExploreOptions(**of_server)
    serve(runs, options, opens_browser=not no_browser, announce=echo, reporter=reporter)
