"""`thresher embed`: the tower's embeddings of the images that a run was encoded on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .analysis.embed_options import EmbedOptions
from .command import FolderPath, StorePlace, echo, edge, given, options_of, to_json
from .progress import ConsoleReporter

if TYPE_CHECKING:
    from .analysis.embed import EmbedResult


@click.command()
@click.argument("run", type=FolderPath())
@click.argument("images", nargs=-1, metavar="[IMAGES...]", type=StorePlace())
@options_of(EmbedOptions)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress on stderr; warnings still.")
@click.pass_context
@edge
def embed(context: click.Context, run: Path, images: tuple[str, ...], as_json: bool, quiet: bool, **_: Any) -> None:
    """Write the tower's embeddings of RUN's images.

    RUN/embeddings.npy holds one embedding a row of the store. `stats` then scores how alike the images are on
    which each feature fires. IMAGES is where they are now, if they were moved. A stopped embed goes on where it was.

    \b
    Example: thresher embed run-1
    Example: thresher embed run-1 /data/imagenet/train
    """  # noqa: D301 (\b is the character that click asks for)
    from .analysis.embed import embed as run_embed

    options = EmbedOptions(**given(context, EmbedOptions))
    where = None if not images else images[0] if len(images) == 1 else images
    result = run_embed(run, where, options, ConsoleReporter(quiet=quiet))
    echo(to_json(result) if as_json else of_embed(result, run))


def of_embed(result: "EmbedResult", run: Path) -> str:
    """Where the embeddings are, and what they are for."""
    left = f" {result.n_unreadable:,} images could not be read." if result.n_unreadable else ""
    kept = f" {result.n_kept:,} were there from before." if result.n_kept else ""
    return (
        f"{result.path}: {result.n_rows:,} embeddings of {result.dim} dimensions, {result.seconds:.0f} s.{kept}{left}\n"
        f"  thresher stats {run} --overwrite    scores the monosemanticity of its features by them"
    )
