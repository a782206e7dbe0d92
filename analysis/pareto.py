"""The figure of a sweep: L0 against explained variance, a line a kind of SAE, the Pareto front marked."""

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .figures import figure_of_height, to_png
from .sweep_results import SPARSITY, Comparison, SaeResult, kind_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["pareto_figure", "pareto_front", "to_png"]

# Okabe and Ito (2008), without the yellow that paper swallows; each line has its own marker besides, for a grey print
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MOST_INSIDE, _LEGEND_COLUMNS = 6, 3  # lines whose names stand within the frame; columns of names below it
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p")


def pareto_front(l0: NDArray[np.float64], explained_variance: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which SAEs no other one beats: none has at most their L0 and at least their explained variance, and is not equal.

    Parameters
    ----------
    l0, explained_variance
        `(n,)`, finite. Equal ones are on the front together.
    """
    no_worse = (l0[None, :] <= l0[:, None]) & (explained_variance[None, :] >= explained_variance[:, None])
    better = (l0[None, :] < l0[:, None]) | (explained_variance[None, :] > explained_variance[:, None])
    is_beaten: NDArray[np.bool_] = np.any(no_worse & better, axis=1)
    return np.logical_not(is_beaten)


def pareto_figure(comparison: Comparison) -> "Figure":
    """L0, on a logarithmic axis, against explained variance on held-out rows.

    SAEs that have no place there (not evaluated, no feature above 0 on any row, worse than the mean row where others
    are better) are counted below it.
    """
    shown, left_out = _placeable(comparison.results)
    lines: dict[tuple[tuple[str, Any], ...], list[SaeResult]] = defaultdict(list)
    for sae in shown:
        lines[tuple(kind_of(sae).items())].append(sae)
    legend_lines = -(-(len(lines) + 1) // _LEGEND_COLUMNS) if len(lines) > _MOST_INSIDE else 0
    with figure_of_height(4.0 + 0.2 * legend_lines) as (figure, axes):
        for number, (kind, saes) in enumerate(lines.items()):
            _draw_line(axes, number, _name_of(kind, comparison), saes)
        if shown:
            _mark_front(axes, shown)
        note = f"\nnot shown: {'; '.join(left_out)}" if left_out else ""
        axes.set_xlabel(f"L0: features above 0 on a row, mean over held-out rows (log scale){note}")
        axes.set_ylabel("explained variance on held-out rows")
        axes.grid(color="#E5E5E5", linewidth=0.6)
        _log_axis(axes, _points(shown)[:, 0])
        n_rows = sorted({sae.n_rows or 0 for sae in shown})
        rows = f", {n_rows[0]:,} held-out rows" if len(n_rows) == 1 else ""
        axes.set_title(f"{len(shown)} SAEs{rows}: up and to the left is better")
        if legend_lines:
            figure.legend(loc="outside lower center", ncols=_LEGEND_COLUMNS)
        elif shown:
            axes.legend(loc="best")
        return figure


def _placeable(saes: list[SaeResult]) -> tuple[list[SaeResult], list[str]]:
    """Those that the axes can show, and how many cannot be shown for which reason."""
    unknown = [sae for sae in saes if sae.l0 is None or sae.explained_variance is None]
    silent = [sae for sae in saes if sae not in unknown and sae.l0 == 0]
    placed = [sae for sae in saes if sae not in unknown and sae not in silent]
    good = [sae for sae in placed if (sae.explained_variance or 0.0) >= 0]
    below = [sae for sae in placed if sae not in good] if good else []
    counts = {"without held-out numbers": unknown, "with L0 0": silent, "with explained variance below 0": below}
    return good or placed, [f"{len(each)} {reason}" for reason, each in counts.items() if each]


def _name_of(kind: tuple[tuple[str, Any], ...], comparison: Comparison) -> str:
    if kind:
        return ", ".join(str(value) if isinstance(value, str) else f"{name} {value:g}" for name, value in kind)
    return "all settings" if comparison.varying else "one setting"


def _draw_line(axes: "Axes", number: int, name: str, saes: list[SaeResult]) -> None:
    """The points of one kind, and the line through the means of those that differ by their seed alone."""
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    settings: dict[tuple[Any, ...], list[SaeResult]] = defaultdict(list)
    for sae in saes:
        settings[tuple(sae.varies.get(option) for option in SPARSITY)].append(sae)
    means = np.array(sorted(_points(each).mean(0).tolist() for each in settings.values()))
    points = _points(saes)
    dashes = ("-", "--", ":")[number // len(_COLOURS) % 3]
    axes.plot(means[:, 0], means[:, 1], color=colour, linewidth=1.0, linestyle=dashes, zorder=2)
    axes.plot(points[:, 0], points[:, 1], color=colour, marker=marker, markersize=4.5, linestyle="", zorder=3)
    axes.plot([], [], color=colour, marker=marker, markersize=4.5, linewidth=1.0, linestyle=dashes, label=name)


def _mark_front(axes: "Axes", shown: list[SaeResult]) -> None:
    points = _points(shown)
    front = points[pareto_front(points[:, 0], points[:, 1])]
    axes.plot(
        front[:, 0],
        front[:, 1],
        marker="o",
        markersize=10,
        markerfacecolor="none",
        markeredgecolor="black",
        markeredgewidth=0.9,
        linestyle="",
        zorder=4,
        label="Pareto front",
    )


def _points(saes: list[SaeResult]) -> NDArray[np.float64]:
    """`(n, 2)`: L0, explained variance."""
    return np.array([(sae.l0, sae.explained_variance) for sae in saes], np.float64).reshape(-1, 2)


def _log_axis(axes: "Axes", l0: NDArray[np.float64]) -> None:
    """A logarithmic axis with plain numbers, at 1, 2 and 5 of each decade where it spans few."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    if len(l0):
        low, high = float(l0.min()) / 1.3, float(l0.max()) * 1.3
        axes.set_xlim(low, high)
        if high / low < 300:
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
