"""`thresher attributes`: how well single features know attributes of images."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .analysis.attributes_options import AttributesOptions
from .command import FolderPath, echo, edge, given, options_of, to_json
from .progress import ConsoleReporter

if TYPE_CHECKING:
    from .analysis.known_attributes import KnownAttributes

_BEST_SHOWN = 10


@click.command()
@click.argument("run", type=FolderPath())
@click.argument("csv", metavar="CSV", type=click.Path(path_type=Path))
@options_of(AttributesOptions)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress on stderr; warnings still.")
@click.pass_context
@edge
def attributes(context: click.Context, run: Path, csv: Path, as_json: bool, quiet: bool, **_: Any) -> None:
    """Score how well single features know the attributes in CSV.

    CSV has a line for each image, its key in the store, and a column for each kind of attribute: true/false, one
    value, or several with a separator. For each attribute the best feature and threshold are chosen on one half of
    the images and scored on the other, beside random directions of the same sparsity, the tower's neurons and, where
    given, an untrained tower. `quickstart` in place of CSV stands for the built-in pictures' own attributes. Writes
    RUN/attributes.tsv and RUN/attributes.json.

    \b
    Example: thresher attributes run-1 birds.csv --group photographer
    Example: thresher attributes run-1 quickstart --untrained untrained/run
    """  # noqa: D301 (\b is the character that click asks for)
    from .analysis.attribute_table import QUICKSTART, emoji_table, read_table
    from .analysis.known_attributes import attributes_of_run

    options, reporter = AttributesOptions(**given(context, AttributesOptions)), ConsoleReporter(quiet=quiet)
    if str(csv) == QUICKSTART:
        table = emoji_table()
    else:
        table = read_table(csv, key=options.key, group=options.group, separator=options.separator)
    known = attributes_of_run(run, table, options, reporter)
    echo(to_json(known.to_json()) if as_json else of_attributes(run, known))


def of_attributes(run: Path, known: "KnownAttributes") -> str:
    """How many attributes each kind of features knows, the best known ones, where all of them are."""
    from .analysis.description import table_lines

    about, counts = known.about, known.counts()
    head = (
        f"{run}: {about['n_scored']:,} of {about['n_attributes']:,} attributes scored, on half of the "
        f"{about['n_groups']:,} groups of {about['n_images']:,} images"
    )
    names = ["", "features", "F1 >= 0.5", "F1 >= 0.7", "mean F1 (95 %)", "behind the SAE (95 %)", "P@20 >= 0.9"]
    rows = [
        [
            each.name,
            f"{each.n_features:,}",
            f"{each.f1_at_least_05:,}",
            f"{each.f1_at_least_07:,}",
            f"{each.mean_f1:.3f} {_range(each.mean_f1_interval)}",
            "" if each is counts[0] else f"{each.behind_sae:.3f} {_range(each.behind_sae_interval)}",
            f"{each.precision_at_least_09:,}",
        ]
        for each in counts
    ]
    best = [
        [
            f"{each.kind} {each.value}",
            str(each.feature),
            f"{each.f1:.2f} {_range(each.f1_interval, 2)}",
            f"{each.precision_at_20:.2f}",
        ]
        for each in known.best()[:_BEST_SHOWN]
    ]
    lines = [head, *_indented(table_lines(names, rows)), "The best known ones:"]
    lines += _indented(table_lines(["", "feature", "F1 (95 %)", "precision at 20"], best))
    lines += [
        f"{counts[0].n_significant:,} are known beyond chance (false discovery rate 5 % over all attributes).",
        f"All of them: {run / 'attributes.tsv'}",
    ]
    return "\n".join(lines)


def _range(interval: tuple[float, float], digits: int = 3) -> str:
    if interval[0] != interval[0]:
        return "[few groups]"
    return f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]
