"""The figures of a run as PNG: densities, label entropy, the post's scatter, L0, training curves."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..store.files import write_atomically
from ..train.l0 import L0Summary
from .clusters import UldSplit
from .statistics import FeatureStatistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart with every common colour blindness, and by lightness in a grey print
BLUE, ORANGE, VERMILION = "#0072B2", "#E69F00", "#D55E00"
_UNDEFINED = "#BDBDBD"
_ENTROPY_MAP = "viridis"  # even in lightness, safe for colour-blind readers
_DPI = 200
_WIDTH_IN = 6.0

_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.constrained_layout.use": True,
}


def draw_figures(out_dir: Path, statistics: FeatureStatistics, split: UldSplit) -> list[Path]:
    """Draw every figure that the numbers allow into `out_dir/figures`; the paths, in reading order.

    Parameters
    ----------
    out_dir
        A run directory, or the folder of a dense matrix's statistics. Its metrics.jsonl gives the training curves.
    statistics, split
        What is drawn.
    """
    paths = []
    for name, figure in statistics_figures(out_dir, statistics, split).items():
        path = out_dir / "figures" / f"{name}.png"
        write_atomically(path, to_png(figure))
        paths.append(path)
    return paths


def statistics_figures(out_dir: Path, statistics: FeatureStatistics, split: UldSplit) -> "dict[str, Figure]":
    """What `draw_figures` draws, by name."""
    from ..train.run_dir import METRICS, read_metrics

    figures = {
        "scatter": scatter_figure(statistics, split),
        "density": density_figure(statistics, split),
        "label_entropy": label_entropy_figure(statistics, split),
        "l0": l0_figure(statistics),
    }
    metrics = read_metrics(out_dir / METRICS)
    if metrics:
        figures["training"] = training_figure(metrics)
    return figures


def to_png(figure: "Figure") -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})  # equal data, equal bytes
    return buffer.getvalue()


def to_pdf(figure: "Figure") -> bytes:
    """The figure as PDF bytes, its letters as text: for papers."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="pdf", dpi=_DPI, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return buffer.getvalue()


def write_figure(path: Path, figure: "Figure") -> None:
    """Write a figure as a PNG at `path`, and as a PDF beside it."""
    write_atomically(path, to_png(figure))
    write_atomically(path.with_suffix(".pdf"), to_pdf(figure))


def density_figure(statistics: FeatureStatistics, split: UldSplit) -> "Figure":
    """Histogram of log10 density of the alive features; the dead ones, who have no logarithm, are counted beside it."""
    alive = statistics.is_alive
    log_density = np.log10(statistics.density[alive])
    with figure_of_height(3.4) as (figure, axes):
        edges = _log_edges(log_density)
        _histogram(axes, log_density, edges, _is_uld(split, alive))
        axes.set_xlabel("density: share of rows on which the feature is > 0 (log scale)")
        axes.set_title(f"Feature density over {statistics.n_rows:,} rows")
        axes.set_xlim(edges[0] - 0.05, edges[-1] + 0.05)
        _log_ticks(axes)
        n_dead = int((~alive).sum())
        lines = [f"{statistics.d_sae:,} features", f"{n_dead:,} dead (never > 0 on these rows)"]
        if len(log_density):
            lines.append(f"median density of the others {10 ** float(np.median(log_density)):.2g}")
        _note(axes, lines, log_density, edges)
        return figure


def label_entropy_figure(statistics: FeatureStatistics, split: UldSplit) -> "Figure":
    """Histogram of label entropy, the undefined ones counted beside it, the ceiling ln k marked."""
    entropy = statistics.label_entropy
    defined = np.isfinite(entropy)
    ceiling = math.log(statistics.k)
    with figure_of_height(3.4) as (figure, axes):
        edges = np.linspace(0, max(ceiling, 1e-9), 31)
        # ln k as float32 lies above ln k for many k: outside the last bin
        shown = np.clip(entropy[defined].astype(np.float64), 0, edges[-1])
        _histogram(axes, shown, edges, _is_uld(split, defined))
        axes.axvline(ceiling, color="black", linewidth=0.8, linestyle="--")
        axes.set_xlim(-0.03 * ceiling, 1.09 * ceiling)
        axes.text(ceiling * 1.01, 0.5, f"ln {statistics.k}", transform=axes.get_xaxis_transform(), va="top")
        axes.set_xlabel("label entropy (nats)")
        axes.set_title(f"Label entropy of the up to {statistics.k} rows on which each feature is largest")
        lines = [
            f"{int(defined.sum()):,} features defined, {int((entropy == 0).sum()):,} of them exactly 0 (one class)",
            f"{int((~defined).sum()):,} undefined: fewer than {statistics.min_labelled} firing labelled rows",
        ]
        if defined.any():
            lines.append(f"median {float(np.median(entropy[defined])):.2f} nats")
        _note(axes, lines, shown, edges, right=0.9)  # left of the ceiling
        return figure


def scatter_figure(statistics: FeatureStatistics, split: UldSplit) -> "Figure":
    """Log10 density against log10 mean top activation, coloured by label entropy, with both marginals."""
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

    alive = statistics.is_alive
    x = np.log10(statistics.density[alive])
    y = np.log10(statistics.mean_top[alive].astype(np.float64))
    entropy = statistics.label_entropy[alive]
    defined = np.isfinite(entropy)
    with _style():
        figure = Figure(figsize=(_WIDTH_IN, 5.4))
        grid = GridSpec(2, 3, figure=figure, width_ratios=(6, 1.3, 0.22), height_ratios=(1.2, 6))
        axes = figure.add_subplot(grid[1, 0])
        top = figure.add_subplot(grid[0, 0], sharex=axes)
        right = figure.add_subplot(grid[1, 1], sharey=axes)
        bar = figure.add_subplot(grid[1, 2])
        size = float(np.clip(6000 / max(len(x), 1), 1.2, 14))
        colours = Normalize(0, math.log(statistics.k) if statistics.k > 1 else 1)
        dots: dict[str, Any] = {"s": size, "linewidths": 0, "alpha": 0.75, "rasterized": True}
        axes.scatter(x[~defined], y[~defined], color=_UNDEFINED, **dots)
        # In a fixed random order, so that no part of the scale lies on top of another.
        order = np.random.default_rng(0).permutation(np.flatnonzero(defined))
        points = axes.scatter(x[order], y[order], c=entropy[order], cmap=_ENTROPY_MAP, norm=colours, **dots)
        points.set_alpha(0.85)
        axes.set_xlabel("density (log scale)")
        axes.set_ylabel(f"mean of the up to {statistics.k} largest activations (log scale)")
        x_edges, y_edges = _log_edges(x), _log_edges(y)
        axes.set_xlim(x_edges[0] - 0.03, x_edges[-1] + 0.03)
        axes.set_ylim(y_edges[0] - 0.03, y_edges[-1] + 0.03)
        _log_ticks(axes)
        _log_ticks(axes, vertical=True)
        _histogram(top, x, x_edges, _is_uld(split, alive))
        _histogram(right, y, y_edges, _is_uld(split, alive), orientation="horizontal")
        top.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
        right.tick_params(axis="y", which="both", left=False, labelleft=False)
        if split.threshold is None:
            right.locator_params(axis="x", nbins=2)
            top.locator_params(axis="y", nbins=3)
        if split.threshold is not None:
            for each in (axes, right):
                each.axhline(split.threshold, color=VERMILION, linewidth=1.0, linestyle="--")
            axes.annotate(
                f"below: ultra-low-density cluster, {int(split.is_uld.sum()):,} features",
                (0.99, split.threshold),
                xycoords=axes.get_yaxis_transform(),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                va="bottom",
                color=VERMILION,
                fontsize=8,
                bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5},
            )
        colour_bar = figure.colorbar(points, cax=bar)
        colour_bar.set_label("label entropy (nats)")
        colour_bar.outline.set_visible(False)
        figure.suptitle(_scatter_title(statistics, int((~defined).sum())), x=0.01, ha="left", fontsize=9)
        return figure


def _scatter_title(statistics: FeatureStatistics, n_undefined: int) -> str:
    n_dead = int((~statistics.is_alive).sum())
    parts = [f"{statistics.d_sae - n_dead:,} features over {statistics.n_rows:,} rows"]
    if n_undefined:
        parts.append(f"grey: entropy undefined ({n_undefined:,})")
    if n_dead:
        parts.append(f"not shown: {n_dead:,} dead")
    return "; ".join(parts)


def l0_figure(statistics: FeatureStatistics) -> "Figure":
    """Histograms of the number of features > 0, and > 0.1, on a row."""
    with figure_of_height(3.4) as (figure, axes):
        for counts, summary, colour, style, name in (
            (statistics.l0_counts, statistics.l0, BLUE, "-", "> 0"),
            (statistics.l0_above_counts, statistics.l0_above, ORANGE, "--", "> 0.1"),  # both seen where they are one
        ):
            _l0_steps(axes, counts, summary, colour, style, name, statistics)
        axes.set_xlabel("L0: number of features on a row")
        axes.set_ylabel("share of rows per unit of L0")
        axes.set_title(f"L0 over {statistics.n_rows:,} rows")
        axes.set_ylim(0, axes.get_ylim()[1] * 1.3)  # room for the legend: a TopK SAE has one bar as high as the axes
        axes.locator_params(axis="x", integer=True)
        axes.legend(loc="upper right")
        return figure


def _l0_steps(
    axes: "Axes",
    counts: NDArray[np.int64],
    summary: L0Summary,
    colour: str,
    style: str,
    name: str,
    statistics: FeatureStatistics,
) -> None:
    label = f"features {name}: mean {summary.mean:.1f}, median {summary.median:.3g}, p99 {summary.p99:.3g}, max "
    # Up to the larger p99: a single row with thousands of features would squeeze everyone else into one bar.
    shown = max(8, math.ceil(1.1 * max(_or_zero(statistics.l0.p99), _or_zero(statistics.l0_above.p99))))
    width = max(1, math.ceil(shown / 60))
    n_bins = math.ceil((shown + 1) / width)
    padded = np.zeros(n_bins * width)
    kept = counts[: len(padded)]
    padded[: len(kept)] = kept
    share = padded.reshape(n_bins, width).sum(axis=1) / max(1, counts.sum()) / width
    edges = np.arange(n_bins + 1) * width - 0.5
    axes.stairs(share, edges, color=colour, fill=True, alpha=0.35)
    axes.stairs(share, edges, color=colour, linestyle=style, linewidth=1.2, label=label + f"{summary.max:,}")
    beyond = int(counts[len(padded) :].sum())
    if beyond:
        axes.plot([], [], " ", label=f"   {beyond:,} rows beyond the right edge")


def training_figure(metrics: list[dict[str, Any]]) -> "Figure":
    """Training curves from the objects of metrics.jsonl: batches, and held-out rows where they were evaluated."""
    from matplotlib.figure import Figure

    panels = (
        ("normalized_mse", "normalised MSE", True),
        ("explained_variance", "explained variance", False),
        ("l0", "L0: features > 0 on a row", True),
        ("share_dead", "share of dead features", False),
    )
    with _style():
        figure = Figure(figsize=(_WIDTH_IN, 4.6))
        grid = figure.subplots(2, 2, sharex=True)
        for axes, (name, label, log) in zip(grid.flat, panels, strict=True):
            for split, colour, shown in (("train", BLUE, "training batch"), ("heldout", VERMILION, "held-out rows")):
                points = [(m["rows"], _number(m.get(name))) for m in metrics if m.get("split") == split]
                points = [(rows, value) for rows, value in points if value is not None and (value > 0 or not log)]
                if not points:
                    continue
                rows, values = np.array(points).T
                marker = "o" if len(points) < 30 and split == "heldout" else None
                axes.plot(rows, values, color=colour, linewidth=1.0, marker=marker, markersize=3, label=shown)
            if log and _spread(axes) > 3:
                axes.set_yscale("log")
                _plain_log_labels(axes)
            elif name == "l0" and axes.lines:
                axes.set_ylim(0, axes.get_ylim()[1] * 1.2)
            if name == "explained_variance" and axes.lines:
                _crop_start(axes)
            if name == "share_dead" and axes.lines:
                most = max(0.01, axes.get_ylim()[1])
                axes.set_ylim(-0.02 * most, most)  # a line of zeros stands clear of the frame
            axes.set_ylabel(label)
            axes.grid(color="#E5E5E5", linewidth=0.6)
        for axes in grid[-1]:
            axes.set_xlabel("training rows")
            axes.xaxis.set_major_formatter(lambda value, _: _short(value))
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2)
        figure.suptitle("Training", x=0.01, ha="left", fontsize=10)
        return figure


def _number(value: Any) -> float | None:
    """A logged number; that of L0, which is a record on held-out rows, is its mean."""
    if isinstance(value, dict):
        value = value.get("mean")
    return None if value is None or not math.isfinite(value) else float(value)


def _spread(axes: "Axes") -> float:
    """Largest over smallest value of the lines; 1 where there are none."""
    values = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in axes.lines] or [np.ones(1)])
    return float(values.max() / values.min())


def _crop_start(axes: "Axes") -> None:
    """Leave the first, strongly negative explained variances below the frame: they hide everything after them."""
    values = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in axes.lines])
    low = max(float(values.min()), float(np.quantile(values, 0.1)) - 0.2, -1.0)
    axes.set_ylim(min(low, float(values.max()) - 0.05), min(1.0, float(values.max()) + 0.05))


def _plain_log_labels(axes: "Axes") -> None:
    """Numbers, not powers, where an axis spans less than two decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_ylim()
    if high / max(low, 1e-300) < 100:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def _or_zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        yield


@contextmanager
def figure_of_height(height_in: float) -> "Iterator[tuple[Figure, Axes]]":
    """A figure of the house's style and width, with axes."""
    # Without pyplot, it draws by Agg, needs no display and is freed with its last reference.
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(_WIDTH_IN, height_in))
        yield figure, figure.subplots()


def _is_uld(split: UldSplit, of: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Which of some features are in the cluster; None where there is none."""
    return None if split.threshold is None else split.is_uld[of]


def _log_edges(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Edges of 20 to 60 bins of one round width in log10 that hold all values; one decade when there are none."""
    if len(values) == 0:
        return np.array([-1.0, 0.0])
    low, high = float(values.min()), float(values.max())
    width = next((w for w in (0.1, 0.05, 0.02) if high - low >= 20 * w), 0.01)
    return np.arange(math.floor(low / width), math.floor(high / width) + 2, dtype=np.float64) * width


def _histogram(
    axes: "Axes",
    values: NDArray[np.floating[Any]],
    edges: NDArray[np.float64],
    is_uld: NDArray[np.bool_] | None,
    *,
    orientation: Literal["vertical", "horizontal"] = "vertical",
) -> None:
    """Histogram of the features; the ULD cluster, where there is one, in its own colour over a log scale of counts.

    The cluster may be fifty times the size of the rest: on a linear scale the rest could not be seen.
    """
    vertical = orientation == "vertical"
    parts = [(values, BLUE, "features")]
    if is_uld is not None:
        parts = [
            (values[~is_uld], BLUE, "other features"),
            (values[is_uld], ORANGE, "ultra-low-density cluster"),
        ]
        (axes.set_yscale if vertical else axes.set_xscale)("log")
    least = 0.0 if is_uld is None else 0.5  # a bin of one feature stands above the floor of a log scale
    for part, colour, name in parts:
        counts, _ = np.histogram(part, bins=edges)
        shown = np.maximum(counts, least).astype(np.float64)
        axes.stairs(
            shown, edges, baseline=least, fill=True, color=colour, alpha=0.8, label=name, orientation=orientation
        )
    if is_uld is not None:
        (axes.set_ylim if vertical else axes.set_xlim)(least)
    (axes.set_ylabel if vertical else axes.set_xlabel)("features" if is_uld is None else "features (log)")


def _note(
    axes: "Axes",
    lines: list[str],
    values: NDArray[np.floating[Any]],
    edges: NDArray[np.float64],
    *,
    right: float = 0.98,
) -> None:
    """Put the counts, and the legend where there are two colours, above the bars on the side where they are lower."""
    counts, _ = np.histogram(values, bins=edges)
    half = len(counts) // 2
    side = "left" if counts[:half].max(initial=0) < counts[half:].max(initial=0) else "right"
    most = max(1.0, float(counts.max(initial=0)))
    # Room for the lines of text above the bars.
    axes.set_ylim(top=most * 25 if axes.get_yscale() == "log" else most * 1.35)
    x = 0.02 if side == "left" else right
    axes.text(x, 0.98, "\n".join(lines), transform=axes.transAxes, ha=side, va="top", fontsize=8)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        below = 0.98 - 0.068 * len(lines)
        axes.legend(
            loc="upper left" if side == "left" else "upper right",
            bbox_to_anchor=(x, below),
            borderpad=0.0,
            borderaxespad=0.0,
        )


def _log_ticks(axes: "Axes", *, vertical: bool = False) -> None:
    """Label an axis of logarithms with the numbers themselves: powers of ten, or more where it spans little."""
    from matplotlib.ticker import FixedLocator, FuncFormatter

    axis = axes.yaxis if vertical else axes.xaxis
    low, high = axes.get_ylim() if vertical else axes.get_xlim()
    powers = range(math.floor(low) - 1, math.ceil(high) + 1)
    if high - low > 1.5:
        axis.set_major_locator(FixedLocator(list(powers)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"$10^{{{value:.0f}}}$"))
    else:
        labelled = (1, 2, 3, 4, 5, 6, 8) if high - low < 1.0 else (1, 2, 5)
        axis.set_major_locator(FixedLocator([p + math.log10(m) for p in powers for m in labelled]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{10**value:.3g}"))
    axis.set_minor_locator(FixedLocator([p + math.log10(m) for p in powers for m in range(2, 10)]))
    (axes.set_ylim if vertical else axes.set_xlim)(low, high)
