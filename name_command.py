"""`thresher name`: names of a run's features by CLIP text, scored on images that did not make them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .analysis.naming.calibration_options import CalibrationOptions
from .analysis.naming.options import NameOptions
from .command import FolderPath, GroupedCommand, echo, edge, given, options_of, to_json
from .progress import ConsoleReporter

if TYPE_CHECKING:
    from .analysis.naming.name import NameResult


@click.command(cls=GroupedCommand)
@click.argument("run", type=FolderPath())
@options_of(NameOptions)
@options_of(CalibrationOptions)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress on stderr; warnings still.")
@click.pass_context
@edge
def name(context: click.Context, run: Path, as_json: bool, quiet: bool, **_: Any) -> None:
    """Name RUN's features by phrases, and score each name.

    A name is found on half of the images and scored on the others: does the phrase tell the images that the feature
    fires on (AUROC), does taking the feature out move embeddings away from the phrase, and adding it towards it, more
    than from random phrases. RUN/names.tsv has a line a feature; one whose best phrase fails is unnamed. A stopped
    command goes on where it was.

    \b
    Example: thresher name run-1
    Example: thresher name run-1 --vocab words.txt --vocabulary labels,nouns
    Example: thresher name run-1 --features 7,100-199 --overwrite
    Example: thresher name run-1 --method post --vocabulary classes
    Example: thresher name run-1 --calibrate birds.csv --group photographer
    """  # noqa: D301 (\b is the character that click asks for)
    options, reporter = NameOptions(**given(context, NameOptions)), ConsoleReporter(quiet=quiet)
    known = CalibrationOptions(**given(context, CalibrationOptions))
    if known.calibrate is not None:
        if unused := [name for name in _NOT_CALIBRATED if name in given(context, NameOptions)]:
            raise ValueError(
                f"--calibrate tries every method on the features that know the table's words: leave out "
                f"--{unused[0].replace('_', '-')}."
            )
        return _calibrate(run, options, known, reporter, as_json)
    from .analysis.naming.name import name as run_naming

    result = run_naming(run, options, reporter)
    echo(to_json(result) if as_json else of_names(result, run))


_NOT_CALIBRATED = ("method", "choose", "features", "sparse_names", "vocab", "vocabulary", "overwrite")


def _calibrate(
    run: Path, options: NameOptions, known: CalibrationOptions, reporter: ConsoleReporter, as_json: bool
) -> None:
    from .analysis.attribute_table import QUICKSTART, emoji_table, read_table
    from .analysis.naming.calibration import calibrate

    assert known.calibrate is not None
    if known.calibrate == QUICKSTART:
        table = emoji_table()
    else:
        table = read_table(Path(known.calibrate), key=known.key, group=known.group, separator=known.separator)
    found = calibrate(run, table, options, reporter, untrained=known.untrained, min_f1=known.min_f1)
    path = found.write(run)
    echo(to_json(found.to_json()) if as_json else f"{found.text()}\nAll of it: {path}")


def of_names(result: "NameResult", run: Path) -> str:
    """How many features are named, the best names, and where they are seen."""
    lines = [
        f"{result.path}: of {result.n_features:,} features {result.n_named:,} are named, {result.n_unnamed:,} are not "
        f"well enough described by any of {result.n_phrases:,} phrases, {result.n_untested:,} fire on too few images, "
        f"or on all. {result.seconds:.0f} s."
    ]
    lines += [f"  {score:.2f}  feature {feature}: {phrase}" for feature, phrase, score in result.examples]
    return "\n".join([*lines, f"  thresher explore {run}    shows them beside their images"])
