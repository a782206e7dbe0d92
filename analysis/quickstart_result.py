"""What a quickstart found, as numbers and as it reads on a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..progress import format_s
from .known_attributes import AttributeCounts, KnownAttribute

_FIGURES_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage of the chain took."""

    name: str
    seconds: float
    cpu_s: float
    """Of all cores, decoding processes included."""
    was_done: bool
    """Whether an earlier quickstart had finished it."""


@dataclass(frozen=True, kw_only=True)
class SaeNumbers:
    """The numbers of one SAE on every row."""

    l0: float
    explained_variance: float
    n_dead: int
    median_label_entropy: float
    """Nats, over the features where it is defined."""
    share_below_one_nat: float
    """Of those features."""


@dataclass(frozen=True, kw_only=True)
class QuickstartResult:
    """What the quickstart found and where it lies."""

    folder: Path
    store_path: Path
    run_path: Path
    n_rows: int
    d_in: int
    d_sae: int
    steps: int
    sae: SaeNumbers
    untrained: SaeNumbers
    """Of the same SAE on the untrained tower."""
    random_label_entropy: float
    """Median label entropy of 20 pictures drawn at random: what a feature without a meaning has."""
    held_out_explained_variance: float
    attributes: list[AttributeCounts]
    """The SAE first, then the controls."""
    best: list[KnownAttribute]
    """Of the SAE, by falling F1."""
    attributes_path: Path
    figures: list[Path]
    stages: list[Stage]
    seconds: float
    cpu_s: float
    next_commands: list[str]


def format_result(result: QuickstartResult) -> str:
    """Results, known attributes, stage times, where the figures are, what to run next; aligned plain text."""
    return "\n\n".join(
        [_results(result), _attributes(result), _best(result), _stages(result), _places(result), _next(result)]
    )


def _results(result: QuickstartResult) -> str:
    head = (
        f"{result.n_rows:,} pictures, {result.d_in} activations each, {result.d_sae:,} features, "
        f"{result.steps:,} training steps"
    )
    sae, untrained = (_numbers(numbers) for numbers in (result.sae, result.untrained))
    rows = [["", "SAE", "on an untrained tower"], *([name, sae[name], untrained[name]] for name in sae)]
    about = f"(The label entropy of 20 pictures drawn at random is {result.random_label_entropy:.2f} nats.)"
    return "\n".join([head, *_columns(rows), about])


def _numbers(numbers: SaeNumbers) -> dict[str, str]:
    return {
        "L0": f"{numbers.l0:.1f}",
        "explained variance": f"{numbers.explained_variance:.3f}",
        "dead features": f"{numbers.n_dead:,}",
        "median label entropy": f"{numbers.median_label_entropy:.2f} nats",
        "features below 1 nat": f"{100 * numbers.share_below_one_nat:.0f} %",
    }


def _attributes(result: QuickstartResult) -> str:
    n = result.attributes[0].n_attributes
    rows = [["", "F1 >= 0.5", "F1 >= 0.7", "mean F1", "P@20 >= 0.9"]]
    for counts in result.attributes:
        numbers = (counts.f1_at_least_05, counts.f1_at_least_07, f"{counts.mean_f1:.3f}", counts.precision_at_least_09)
        rows.append([counts.name, *map(str, numbers)])
    head = f"Known attributes: of {n}, how many a single feature tells on held-out emoji"
    about = "(P@20: precision at 20, the share of hits among the 20 strongest pictures.)"
    return "\n".join([head, *_columns(rows), about])


def _best(result: QuickstartResult) -> str:
    rows = [["attribute", "feature", "F1", "precision at 20"]]
    rows += [
        [f"{known.kind} {known.value}", str(known.feature), f"{known.f1:.2f}", f"{known.precision_at_20:.2f}"]
        for known in result.best
    ]
    return "\n".join([f"The best known ones; all of them are in {result.attributes_path}", *_columns(rows)])


def _stages(result: QuickstartResult) -> str:
    rows = [["stage", "seconds", "CPU seconds"]]
    for stage in result.stages:
        rows.append([stage.name, f"{stage.seconds:.1f}", f"{stage.cpu_s:.1f}"])
        if stage.was_done:
            rows[-1].append("done before")
    rows.append(["in all", f"{result.seconds:.1f}", f"{result.cpu_s:.1f}"])
    return "\n".join([f"Done in {format_s(result.seconds)}", *_columns(rows)])


def _places(result: QuickstartResult) -> str:
    named = [f"  {path}" for path in result.figures[:_FIGURES_NAMED]]
    more = len(result.figures) - len(named)
    return "\n".join(["Look at", *named, *([f"  and {more} more figures beside them"] if more > 0 else [])])


def _next(result: QuickstartResult) -> str:
    its = [f"  thresher {command} {result.run_path}" for command in ("explore", "name", "visualise")]
    own = [f"  {command}" for command in result.next_commands]
    heads = "Browse its features, name them, make pictures of them", "Next, on your own pictures"
    return "\n".join([heads[0], *its, "", heads[1], *own])


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    n_columns = len(rows[0])
    widths = [max(len(row[column]) for row in rows) for column in range(n_columns)]
    return [
        ("  " + "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, n_columns))]))
        + "".join(f"  {note}" for note in row[n_columns:])
        for row in rows
    ]
