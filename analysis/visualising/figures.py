"""The figures of pictures: their checks beside what they are held against, and agreement over all features."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..figures import BLUE, ORANGE, VERMILION, figure_of_height
from .checks import LEAST_RATIO, LEAST_RETENTION, LEAST_TRANSFER, MOST_RANK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREEN, GREY = "#009E73", "#555555"  # of Okabe and Ito, as the others
_COLOURS = {"pictures": BLUE, "top images": GREEN}
_RETENTION = "retention"
_PANELS: tuple[tuple[str, str, float, bool], ...] = (
    ("activation_ratio", "activation / largest on a real image", LEAST_RATIO, True),
    ("rank", "rank among all features", MOST_RANK, False),
    (_RETENTION, "least kept by JPEG, blur and crops", LEAST_RETENTION, True),
    ("transfer_percentile", "transfer: percentile of nearness", LEAST_TRANSFER, True),
)
"""Column, words, bound of the rule, whether more is better."""
_PAIRS = {
    "agreement_picture_images": ("picture and top images", ORANGE, "-"),
    "agreement_picture_name": ("picture and name", VERMILION, "--"),
    "agreement_images_name": ("top images and name", GREEN, ":"),
}

Columns = Mapping[str, NDArray[np.float64]]


def checks_figure(kinds: Mapping[str, Columns]) -> "Figure":
    """What each check gives, kind by kind of picture: median, quartiles, 5th to 95th percentile, and the rule.

    Parameters
    ----------
    kinds
        Columns of the table of checks by kind; undefined values are NaN.
    """
    with figure_of_height(1.6 + 0.6 * len(kinds)) as (figure, axes):
        axes.remove()
        grid = figure.subplots(2, 2, sharey=True)
        for place, (column, words, bound, more_is_better) in zip(grid.flat, _PANELS, strict=True):
            for number, (kind, columns) in enumerate(kinds.items()):
                _bar(place, number, _column(columns, column), _COLOURS.get(kind, GREY))
            place.axvline(bound, color="black", linewidth=0.9, linestyle="--")
            sign = "≥" if more_is_better else "≤"
            place.text(bound, 1.0, f" {sign} {bound:g}", transform=place.get_xaxis_transform(), va="bottom", fontsize=8)
            place.set_xlabel(words)
            if column == "rank":
                place.set_xscale("log")
                place.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            else:
                place.set_xlim(left=0)
        names = [f"{kind} ({len(next(iter(columns.values()))):,})" for kind, columns in kinds.items()]
        grid[0, 0].set_yticks(range(len(kinds)), names)
        grid[0, 0].set_ylim(len(kinds) - 0.5, -0.5)
        return figure


def _column(columns: Columns, name: str) -> NDArray[np.float64]:
    """A column's known values; of retention the least of the three."""
    if name == _RETENTION:
        values = np.min([columns[f"retention_{damage}"] for damage in ("jpeg", "blur", "crop")], axis=0)
    else:
        values = columns[name]
    return values[np.isfinite(values)]


def _bar(axes: "Axes", y: float, values: NDArray[np.float64], colour: str) -> None:
    if not len(values):
        axes.annotate("  undefined", (0, y), xycoords=axes.get_yaxis_transform(), va="center", fontsize=8, color=GREY)
        return
    low, first, middle, third, high = np.percentile(values, (5, 25, 50, 75, 95))
    axes.plot([low, high], [y, y], color=colour, linewidth=1.2)
    axes.plot([first, third], [y, y], color=colour, linewidth=6, solid_capstyle="butt")
    axes.plot(middle, y, "o", color="white", markeredgecolor=colour, markersize=6, zorder=4, clip_on=False)


def agreement_figure(
    arrays: Mapping[str, NDArray[np.float32]], label_entropy: NDArray[np.float32], is_passed: NDArray[np.bool_]
) -> "Figure":
    """Agreement over all features, that of its pairs, and agreement against label entropy.

    Parameters
    ----------
    arrays
        The four arrays of `agreement.ARRAYS`.
    label_entropy
        `(F,)` nats, NaN undefined.
    is_passed
        `(F,)`: whose picture passed its checks.
    """
    from matplotlib.figure import Figure

    agreement, edges = arrays["agreement"], np.linspace(0, 100, 21)
    known = np.isfinite(agreement)
    with figure_of_height(3.4 + 2.8 * bool(known.any())) as (figure, axes):
        if known.any():
            axes.remove()
            assert isinstance(figure, Figure)
            axes, below = figure.subplots(2, 1, height_ratios=(3, 2.8))
            _against_entropy(below, agreement, label_entropy, is_passed)
            counts, _ = np.histogram(agreement[known], bins=edges)
            label = f"all three: {known.sum():,}, median {np.median(agreement[known]):.0f}"
            axes.stairs(counts / known.sum(), edges, fill=True, color=BLUE, alpha=0.6, label=label)
        for name, (words, colour, style) in _PAIRS.items():
            values = arrays[name][np.isfinite(arrays[name])]
            if len(values):
                counts, _ = np.histogram(values, bins=edges)
                label = f"{words}: {len(values):,}, median {np.median(values):.0f}"
                axes.stairs(counts / len(values), edges, color=colour, linestyle=style, linewidth=1.5, label=label)
        axes.axvline(50, color="black", linewidth=0.9, linestyle="--")
        axes.text(50, 1.0, " chance: mean 50", transform=axes.get_xaxis_transform(), va="bottom", fontsize=8)
        axes.set_xlim(0, 100)
        axes.set_xlabel("agreement (percentile among other features)")
        axes.set_ylabel("share of features")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left")
        return figure


def _against_entropy(
    axes: "Axes",
    agreement: NDArray[np.float32],
    label_entropy: NDArray[np.float32],
    is_passed: NDArray[np.bool_],
) -> None:
    known = np.isfinite(agreement) & np.isfinite(label_entropy)
    for chosen, colour, marker, words in (
        (known & is_passed, BLUE, "o", "picture passed"),
        (known & ~is_passed, VERMILION, "x", "picture failed"),
    ):
        if chosen.any():
            label = f"{words}: {chosen.sum():,}"
            axes.scatter(label_entropy[chosen], agreement[chosen], s=16, color=colour, marker=marker, label=label)
    axes.axhline(50, color="black", linewidth=0.9, linestyle="--")
    axes.set_ylim(0, 103)
    axes.set_xlabel("label entropy (nats)")
    axes.set_ylabel("agreement")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", frameon=True, framealpha=0.85, edgecolor="none")
