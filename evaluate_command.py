"""The command `evaluate`: what an SAE in its place costs its tower."""

from pathlib import Path
from typing import Any

import click

from .analysis.evaluate_options import EvaluateOptions
from .command import FolderPath, StorePlace, echo, edge, given, options_of, to_json
from .progress import ConsoleReporter


@click.command()
@click.argument("run", type=FolderPath())
@click.argument("images", nargs=-1, required=True, metavar="IMAGES...", type=StorePlace())
@options_of(EvaluateOptions)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress on stderr; warnings still.")
@click.pass_context
@edge
def evaluate(context: click.Context, run: Path, images: tuple[str, ...], as_json: bool, quiet: bool, **_: Any) -> None:
    """Score RUN's tower on IMAGES with its SAE in place and without.

    Contrastive loss and zero-shot accuracy of the tower as it is, with the SAE's reconstruction, with zeros and with
    the mean in its place; the classes that the SAE damages. The images that it was trained on are left out. They go to
    RUN/evaluate.json and RUN/evaluate_classes.tsv.

    \b
    Example: thresher evaluate run-1 imagenet/val
    Example: thresher evaluate run-1 imagenet/val --templates openai
    Example: thresher evaluate run-1 imagenet/val --explain
    """  # noqa: D301 (\b is the character that click asks for)
    from .analysis.evaluate import evaluate as run_evaluation
    from .analysis.evaluate_text import format_evaluation

    options = EvaluateOptions(**given(context, EvaluateOptions))
    result = run_evaluation(run, images if len(images) > 1 else images[0], options, ConsoleReporter(quiet=quiet))
    echo(to_json(result.document) if as_json else format_evaluation(result))
