"""The figures of an alignment: cosines beside chance, neurons per feature, earlier blocks, label entropies."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .figures import BLUE, ORANGE, VERMILION, figure_of_height, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .alignment import Alignment, SetAlignment, SideAlignment
    from .neuron_images import NeuronImages

GREEN = "#009E73"  # of Okabe and Ito, as the others
_CHANCE_COLOURS = {"isotropic": ORANGE, "covariance": GREEN}
_CHANCE_WORDS = {"isotropic": "isotropic chance", "covariance": "chance, covariance of the activations"}
_MOST_SHOWN = 30  # neurons per feature: those with more share the last bar


def draw_alignment(run_path: Path, alignment: "Alignment") -> list[Path]:
    """Draw every figure that the numbers allow into `RUN/figures`, as PNG and PDF; the PNGs, in reading order."""
    figures: dict[str, Figure] = {}
    for side in alignment.sides:
        suffix = "" if side.side == "encoder" else f"_{side.side}"
        figures[f"alignment_cosines{suffix}"] = cosines_figure(side, alignment)
        figures[f"alignment_neurons{suffix}"] = neurons_figure(side, alignment)
        if side.others:
            figures[f"alignment_blocks{suffix}"] = blocks_figure(side, alignment)
    if alignment.images and alignment.statistics is not None:
        entropy = alignment.statistics.statistics.label_entropy[alignment.is_counted]
        figures["alignment_entropy"] = entropy_figure(entropy, alignment.images)
    paths = []
    for name, figure in figures.items():
        path = run_path / "figures" / f"{name}.png"
        write_figure(path, figure)
        paths.append(path)
    return paths


def cosines_figure(side: "SideAlignment", alignment: "Alignment") -> "Figure":
    """Histograms of the largest cosine of each feature and of random directions, signed and absolute."""
    from matplotlib.figure import Figure

    main = side.main
    with figure_of_height(5.0 if main.outputs.has_sign else 3.0) as (figure, axes):
        panels = [False, True] if main.outputs.has_sign else [True]
        if len(panels) == 2:
            axes.remove()
            assert isinstance(figure, Figure)
            grid = list(figure.subplots(2, 1, sharex=True))
        else:
            grid = [axes]
        for place, is_absolute in zip(grid, panels, strict=True):
            _cosine_histogram(place, main, is_absolute, alignment)
        grid[0].set_title(f"{side.side.capitalize()} vectors and {_words(main)}")
        grid[-1].set_xlabel("largest cosine of a direction with any of them")
        return figure


def _cosine_histogram(axes: "Axes", main: "SetAlignment", is_absolute: bool, alignment: "Alignment") -> None:
    features = (main.largest.absolute if is_absolute else main.largest.signed)[alignment.is_counted]
    features = features[np.isfinite(features)]
    drawn = [(c.kind, c.of(is_absolute)) for c in main.chance]
    everything = np.concatenate([features, *(values for _, values in drawn)])
    edges = np.linspace(float(everything.min()), float(everything.max()) + 1e-6, 81)
    counts, _ = np.histogram(features, bins=edges)
    axes.stairs(
        counts / max(1, len(features)), edges, fill=True, color=BLUE, alpha=0.75, label=f"{len(features):,} features"
    )
    for (kind, values), style in zip(drawn, ("-", "--"), strict=False):
        heights, _ = np.histogram(values, bins=edges)
        colour = _CHANCE_COLOURS[kind]
        axes.stairs(
            heights / len(values), edges, color=colour, linewidth=1.3, linestyle=style, label=_CHANCE_WORDS[kind]
        )
        level = float(np.quantile(values, alignment.options.chance_quantile))
        axes.axvline(level, color=colour, linewidth=0.9, linestyle=":")
        percentile = f"{100 * alignment.options.chance_quantile:g}"
        above = f"{int((features > level).sum()):,} features above"  # as a share, a few of many would read as none
        axes.plot([], [], " ", label=f"   its {percentile}th percentile {level:.3f}: {above}")
    axes.set_ylabel(f"share of directions\n({'absolute' if is_absolute else 'signed'} cosine)")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.55)  # room for the legend
    legend = axes.legend(loc="upper right", frameon=True, edgecolor="none", framealpha=0.85)
    legend.set_zorder(5)


def neurons_figure(side: "SideAlignment", alignment: "Alignment") -> "Figure":
    """How many neurons lie above a chance level, feature by feature: the post's figure, for each kind of chance."""
    shown = [level for level in side.levels if level.is_absolute != side.main.outputs.has_sign]
    with figure_of_height(3.6) as (figure, axes):
        most = min(_MOST_SHOWN, max(4, *(int(side.nearest.n_above[level.name].max(initial=0)) for level in shown)))
        width, tallest = 0.8 / len(shown), 1.0
        for i, level in enumerate(shown):
            kind = level.name.split("_")[1]
            n_above = side.nearest.n_above[level.name][alignment.is_counted]
            counts = np.bincount(np.minimum(n_above, most), minlength=most + 1)
            some = n_above[n_above > 0]
            few = f", {100 * float((some < 5).mean()):.0f} % of them with fewer than 5" if len(some) else ""
            axes.bar(
                np.arange(most + 1) + (i - (len(shown) - 1) / 2) * width,
                np.maximum(counts, 0.5) - 0.5,  # a bar of one feature stands above the floor of a log scale
                width,
                bottom=0.5,
                color=_CHANCE_COLOURS[kind],
                hatch="////" if kind == "isotropic" else None,
                edgecolor="white",
                linewidth=0,
                label=f"above {level.value:.3f}, {_CHANCE_WORDS[kind]}:\n{len(some):,} features with any{few}",
            )
            tallest = max(tallest, float(counts.max()))
        axes.set_yscale("log")
        axes.set_ylim(0.5, tallest * 30)
        axes.set_xlabel(
            f"{_noun(side.main)} of block {side.main.outputs.layer} (0-based) that a feature is aligned with"
        )
        axes.set_ylabel("features (log)")
        axes.set_xticks(*_ticks(most))
        axes.set_title(f"{side.side.capitalize()} vectors of {int(alignment.is_counted.sum()):,} {alignment.counted}")
        axes.legend(loc="upper right")
        return figure


def _ticks(most: int) -> tuple[list[int], list[str]]:
    places = list(range(0, most + 1, 1 if most <= 12 else 5))
    return places, [f"{p}+" if p == _MOST_SHOWN else str(p) for p in places]


def blocks_figure(side: "SideAlignment", alignment: "Alignment") -> "Figure":
    """Largest absolute cosines with every block that has written, beside the chance bands: MLPs, then attention."""
    sets = {
        kind: sorted((s for s in (*side.others, side.main) if s.outputs.kind == kind), key=lambda s: s.outputs.layer)
        for kind in ("mlp", "attention")
    }
    sets = {kind: found for kind, found in sets.items() if found}
    with figure_of_height(2.6 * len(sets) + 0.4) as (figure, axes):
        axes.remove()
        grid = np.atleast_1d(figure.subplots(len(sets), 1, sharex=True))
        for place, (kind, found) in zip(grid, sets.items(), strict=True):
            _block_bands(place, found, alignment.is_counted)
            place.set_title("MLP neurons" if kind == "mlp" else "attention: singular directions of the heads")
            place.set_ylabel("largest absolute cosine")
        handles, labels = grid[0].get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda i: not labels[i].startswith("features"))
        grid[0].legend([handles[i] for i in order], [labels[i] for i in order], loc="upper left", fontsize=7)
        grid[-1].set_xlabel("block that writes (0-based)")
        grid[-1].xaxis.get_major_locator().set_params(integer=True)
        return figure


def _block_bands(axes: "Axes", sets: "list[SetAlignment]", is_counted: NDArray[np.bool_]) -> None:
    layers = np.array([s.outputs.layer for s in sets])
    for i, (kind, hatch) in enumerate((("isotropic", "////"), ("covariance", None))):
        found = [c for s in sets for c in s.chance if c.kind == kind]
        if len(found) == len(sets):
            low, middle, high = _band([c.absolute for c in found], (0.01, 0.5, 0.99))
            colour = _CHANCE_COLOURS[kind]
            shift = 0.28 * (i * 2 - 1)
            axes.bar(
                layers + shift,
                high - low,
                0.24,
                bottom=low,
                facecolor="white" if hatch else colour,
                edgecolor=colour,
                hatch=hatch,
                linewidth=0.8,
                label=f"{_CHANCE_WORDS[kind]}: 1st to 99th percentile",
            )
            axes.hlines(middle, layers + shift - 0.12, layers + shift + 0.12, color="black", linewidth=0.8)
    low, middle, high = _band([s.largest.absolute[is_counted] for s in sets], (0.01, 0.5, 0.99))
    axes.bar(layers, high - low, 0.24, bottom=low, color=BLUE, label="features: 1st to 99th percentile, median")
    axes.hlines(middle, layers - 0.12, layers + 0.12, color="black", linewidth=0.8)
    top = [float(np.nanmax(s.largest.absolute[is_counted], initial=0)) for s in sets]
    axes.plot(
        layers, top, linestyle="none", marker="_", markersize=5, color=VERMILION, label="features: largest of all"
    )
    axes.set_ylim(0, min(1.0, max(*top, float(high.max())) * 1.5) if len(top) > 1 else 1.0)


def _band(
    samples: "list[NDArray[np.float32]]", quantiles: tuple[float, float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    values = [
        np.quantile(s[np.isfinite(s)], quantiles) if np.isfinite(s).any() else np.full(3, np.nan) for s in samples
    ]
    low, middle, high = np.array(values, np.float64).T
    return low, middle, high


def entropy_figure(features: NDArray[np.float32], images: "tuple[NeuronImages, ...]") -> "Figure":
    """Share of features and of neurons up to each label entropy."""
    k = images[0].statistics.k
    curves = [(features, BLUE, "-", "features")]
    names = {"mlp_act": "neurons, by their activations", "projection": "neurons, by projection on output vectors"}
    for each, (colour, style) in zip(images, ((VERMILION, "--"), (GREEN, ":")), strict=False):
        curves.append((each.statistics.label_entropy, colour, style, names[each.kind]))
    with figure_of_height(3.4) as (figure, axes):
        for entropy, colour, style, name in curves:
            defined = np.sort(entropy[np.isfinite(entropy)])
            if len(defined) == 0:
                axes.plot([], [], color=colour, linestyle=style, label=f"{name}: none defined")
                continue
            share = np.arange(1, len(defined) + 1) / len(defined)
            axes.step(
                np.concatenate(([0.0], defined)),
                np.concatenate(([0.0], share)),
                where="post",
                color=colour,
                linestyle=style,
                linewidth=1.5,
                label=f"{len(defined):,} {name}: median {float(np.median(defined)):.2f} nats",
            )
        axes.axhline(0.5, color="#BDBDBD", linewidth=0.7)
        axes.set_xlim(0, float(np.log(max(k, 2))) * 1.02)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel(f"label entropy of the {k} largest rows (nats; ln {k} = {float(np.log(k)):.2f})")
        axes.set_ylabel("share at or below")
        axes.set_title(f"Features beside the MLP neurons of block {images[0].layer} (0-based)")
        axes.legend(loc="lower right")
        return figure


def _noun(of: "SetAlignment") -> str:
    return "MLP neurons" if of.outputs.kind == "mlp" else "attention directions"


def _words(of: "SetAlignment") -> str:
    return f"the {of.n_vectors:,} {_noun(of)} of block {of.outputs.layer} (0-based)"
