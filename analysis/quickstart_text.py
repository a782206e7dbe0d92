"""How the result of a quickstart reads on a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..progress import format_s

if TYPE_CHECKING:
    from .quickstart import QuickstartResult, SaeNumbers

_FIGURES_NAMED = 4


def format_result(result: "QuickstartResult") -> str:
    """Results, known attributes, stage times, where the figures are, what to run next; aligned plain text."""
    return "\n\n".join(
        [_results(result), _attributes(result), _best(result), _stages(result), _places(result), _next(result)]
    )


def _results(result: "QuickstartResult") -> str:
    head = (
        f"{result.n_rows:,} pictures, {result.d_in} activations each, {result.d_sae:,} features, "
        f"{result.steps:,} training steps"
    )
    sae, untrained = (_numbers(numbers) for numbers in (result.sae, result.untrained))
    rows = [["", "SAE", "on an untrained tower"], *([name, sae[name], untrained[name]] for name in sae)]
    about = f"(The label entropy of 20 pictures drawn at random is {result.random_label_entropy:.2f} nats.)"
    return "\n".join([head, *_columns(rows), about])


def _numbers(numbers: "SaeNumbers") -> dict[str, str]:
    return {
        "L0": f"{numbers.l0:.1f}",
        "explained variance": f"{numbers.explained_variance:.3f}",
        "dead features": f"{numbers.n_dead:,}",
        "median label entropy": f"{numbers.median_label_entropy:.2f} nats",
        "features below 1 nat": f"{100 * numbers.share_below_one_nat:.0f} %",
    }


def _attributes(result: "QuickstartResult") -> str:
    n = result.attributes[0].n_attributes
    rows = [["", "F1 >= 0.5", "F1 >= 0.7", "mean F1", "precision at 20 >= 0.9"]]
    for counts in result.attributes:
        numbers = (counts.f1_at_least_05, counts.f1_at_least_07, f"{counts.mean_f1:.3f}", counts.precision_at_least_09)
        rows.append([counts.name, *map(str, numbers)])
    head = f"Known attributes: of {n}, how many one feature picks out on emoji it was not chosen on"
    return "\n".join([head, *_columns(rows)])


def _best(result: "QuickstartResult") -> str:
    rows = [["attribute", "feature", "F1", "precision at 20"]]
    rows += [
        [f"{known.kind} {known.value}", str(known.feature), f"{known.f1:.2f}", f"{known.precision_at_20:.2f}"]
        for known in result.best
    ]
    return "\n".join([f"The best known ones; all of them are in {result.attributes_path}", *_columns(rows)])


def _stages(result: "QuickstartResult") -> str:
    rows = [["stage", "seconds", "CPU seconds"]]
    for stage in result.stages:
        rows.append([stage.name, f"{stage.seconds:.1f}", f"{stage.cpu_s:.1f}"])
        if stage.was_done:
            rows[-1].append("done before")
    rows.append(["in all", f"{result.seconds:.1f}", f"{result.cpu_s:.1f}"])
    return "\n".join([f"Done in {format_s(result.seconds)}", *_columns(rows)])


def _places(result: "QuickstartResult") -> str:
    named = [f"  {path}" for path in result.figures[:_FIGURES_NAMED]]
    more = len(result.figures) - len(named)
    return "\n".join(["Look at", *named, *([f"  and {more} more figures beside them"] if more > 0 else [])])


def _next(result: "QuickstartResult") -> str:
    return "\n".join(["Next, on your own pictures", *(f"  {command}" for command in result.next_commands)])


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    n_columns = len(rows[0])
    widths = [max(len(row[column]) for row in rows) for column in range(n_columns)]
    return [
        ("  " + "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, n_columns))]))
        + "".join(f"  {note}" for note in row[n_columns:])
        for row in rows
    ]
