"""The figures of a report: those of the statistics drawn anew, those of other commands as they lie in the run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .clusters import UldSplit
from .figures import BLUE, ORANGE, VERMILION, figure_of_height, statistics_figures, write_figure
from .report_page import Figure
from .stored_statistics import StoredStatistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawn

_GREEN, _GREY = "#009E73", "#555555"
_LINES = {
    "sae": (BLUE, "-"),
    "untrained": (ORANGE, "--"),
    "random": (VERMILION, ":"),
    "neurons": (_GREEN, "-."),
    "mlp_neurons": (_GREY, (0, (5, 1, 1, 1, 1, 1))),
}
WAYS = {
    "original": "original",
    "sae": "SAE spliced in",
    "mean": "mean of training rows",
    "zero": "zeros",
    "with_error": "SAE and its error",
    "random_error": "random error",
}

_ALIGNMENT = {
    "alignment_cosines": (
        "Histograms of each feature's largest cosine with the block's output vectors, beside two kinds of chance.",
        "Each feature's largest cosine with the output vectors, signed above and absolute below, beside that of random "
        "directions: even ones, and ones with the covariance of the activations. Dotted: the chance levels.",
    ),
    "alignment_neurons": (
        "Bars: features by the number of neurons that they are aligned with.",
        "How many neurons lie above the chance level, feature by feature.",
    ),
    "alignment_blocks": (
        "Bands of the largest absolute cosines with the output vectors of every block, beside chance.",
        "Largest absolute cosines with what each block writes, from the 1st to the 99th percentile, beside chance.",
    ),
    "alignment_entropy": (
        "Cumulative shares of features and of neurons up to each label entropy.",
        "Label entropy of the features beside that of the MLP neurons: a curve further to the left is more selective.",
    ),
}
_SHEETS = {
    "sheet_chosen": "Chosen features: the images on which each is largest, most first.",
    "overview_random": "Features drawn at random: the images on which each is largest.",
    "overview_attributes": "The features that know an attribute best: the images on which each is largest.",
    "sheet_random": "Features drawn at random from the alive ones: the images on which each is largest, most first.",
    "sheet_selective": "The features of least label entropy: the images on which each is largest, most first.",
}


def stored_split(stored: StoredStatistics) -> UldSplit:
    """The ULD split of stored statistics; its mixture is not stored."""
    uld = stored.summary["uld"]
    return UldSplit(
        threshold=None if uld is None else float(np.log10(uld["threshold"])),
        reason=stored.summary["no_uld_because"],
        is_uld=stored.is_uld,
        mixture=None,
        bic_gain=stored.summary["uld_fit"]["bic_gain"],
        dip=stored.summary["uld_fit"]["dip"],
    )


def draw_statistics(run_path: Path, stored: StoredStatistics) -> dict[str, Figure]:
    """Draw the statistics' figures into `RUN/figures`, as PNG and PDF."""
    drawn = statistics_figures(run_path, stored.statistics, stored_split(stored))
    alts = _alts(stored)
    return {name: _written(run_path, name, figure, *alts[name]) for name, figure in drawn.items()}


def _alts(stored: StoredStatistics) -> dict[str, tuple[str, str]]:
    s, statistics = stored.summary, stored.statistics
    k, rows = s["k"], f"{s['n_rows']:,} rows ({s['split']})"
    density = statistics.density[statistics.is_alive]
    entropy = statistics.label_entropy[np.isfinite(statistics.label_entropy)]
    cluster = (
        "no ultra-low-density cluster"
        if s["uld"] is None
        else (f"an ultra-low-density cluster of {s['uld']['n_features']:,} features below the dashed line")
    )
    middle = f"median {np.median(density):.2g}" if len(density) else "all features dead"
    entropies = f"median {np.median(entropy):.2f} nats" if len(entropy) else "undefined for every feature"
    return {
        "scatter": (
            f"Scatter of {len(density):,} features by density and mean top activation, coloured by label entropy; "
            f"{cluster}.",
            f"Every feature that fires on {rows}: density against the mean of its up to {k} largest activations, both "
            "on log scales, coloured by label entropy, with the histograms of both.",
        ),
        "density": (
            f"Histogram of feature density on a log scale; {middle}; {s['n_dead']:,} dead features.",
            f"Feature density over {rows}.",
        ),
        "label_entropy": (
            f"Histogram of label entropy, {entropies}; {s['n_entropy_undefined']:,} features undefined.",
            f"Label entropy of the up to {k} rows on which each feature is largest; the dashed line is its ceiling.",
        ),
        "l0": (
            f"Histogram of L0: mean {_short(s['l0']['mean'])}, largest {s['l0']['max']:,}.",
            f"Features above 0, and above 0.1, on a row, over {rows}.",
        ),
        "training": (
            "Curves over training rows: normalised MSE, explained variance, L0, share of dead features.",
            "Training: each logged batch, and the held-out rows where they were evaluated.",
        ),
    }


def alignment_figures(run_path: Path, alignment: Mapping[str, Any]) -> list[Figure]:
    """The figures that `align` left of this alignment; an earlier one with other options may have left more."""
    found = []
    for side in alignment.get("sides", ("encoder",)):
        is_decoder = side == "decoder"
        for name, (alt, caption) in _ALIGNMENT.items():
            if name == "alignment_entropy" and (is_decoder or not alignment.get("neurons")):
                continue
            path = run_path / "figures" / f"{name}{'_decoder' if is_decoder else ''}.png"
            if path.exists():
                whose = "Decoder vectors. " if is_decoder else ""
                found.append(Figure(path=path, alt=whose + alt, caption=whose + caption))
    return found


def sheets(run_path: Path) -> list[Figure]:
    """The contact sheets that `stats` and `quickstart` left."""
    return [
        Figure(path=path, alt="Contact sheet. " + caption, caption=caption)
        for name, caption in _SHEETS.items()
        for path in [run_path / "figures" / f"{name}.png"]
        if path.exists()
    ]


def loss_drawing(run_path: Path, contrastive: Mapping[str, Any]) -> Figure:
    """Draw the contrastive losses with their intervals."""
    ways = [way for way in WAYS if way in contrastive["ways"]]
    with figure_of_height(0.7 + 0.42 * len(ways)) as (figure, axes):
        for place, way in enumerate(ways):
            found = contrastive["ways"][way]
            low, high = found.get("loss_interval_images") or (found["loss"], found["loss"])
            axes.plot([low, high], [place, place], color=BLUE, linewidth=2.0, solid_capstyle="butt")
            axes.plot(found["loss"], place, "o", color=BLUE, markersize=5, zorder=4)
            axes.annotate(
                f"{found['loss']:.3f}",
                (found["loss"], place),
                (0, 5),
                textcoords="offset points",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
                ha="center",
                fontsize=8,
            )
        guess = contrastive["ln_batch_size"]
        axes.axvline(guess, color="black", linewidth=0.8, linestyle="--")
        axes.text(
            guess, 1.0, f" guessing, ln {contrastive['batch_size']}", transform=axes.get_xaxis_transform(), va="top"
        )
        axes.set_yticks(range(len(ways)), [WAYS[way] for way in ways])
        axes.set_ylim(len(ways) - 0.5, -0.8)
        axes.set_xlim(left=0)
        axes.set_xlabel("contrastive loss (nats), with 95 % intervals over images")
        said = ", ".join(f"{WAYS[way]} {contrastive['ways'][way]['loss']:.3f}" for way in ways)
        caption = "Contrastive loss of the tower as it is and with the site replaced."
        return _written(run_path, "contrastive_loss", figure, f"Contrastive loss in nats: {said}.", caption)


def attributes_drawing(run_path: Path, document: Mapping[str, Any]) -> Figure:
    """Draw how many attributes are known at each F1, for the SAE and what it is held against."""
    with figure_of_height(3.4) as (figure, axes):
        for each in document["counts"]:
            f1 = np.sort([a["f1_of"][each["slug"]] for a in document["attributes"]])[::-1]
            colour, style = _LINES[each["slug"]]
            axes.step(
                np.concatenate((f1, [0.0])),
                np.concatenate((np.arange(1, len(f1) + 1), [len(f1)])),
                where="post",
                color=colour,
                linestyle=style,
                linewidth=1.6,
                label=f"{each['name']}: mean {each['mean_f1']:.3f}",
            )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.05 * max(1, document["n_scored"]))
        axes.set_xlabel("F1 on the half that the feature was not chosen on")
        axes.set_ylabel("attributes known at least so well")
        axes.legend(loc="upper right")
        said = "; ".join(f"{each['name']}: {each['f1_at_least_05']} at 0.5" for each in document["counts"])
        caption = (
            f"How many of {document['n_scored']:,} attributes a single feature knows, by the F1 that is asked for."
        )
        return _written(run_path, "attributes", figure, f"Attributes known at each F1. {said}.", caption)


def _written(run_path: Path, name: str, figure: "Drawn", alt: str, caption: str) -> Figure:
    path = run_path / "figures" / f"{name}.png"
    write_figure(path, figure)
    return Figure(path=path, alt=alt, caption=caption)


def _short(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"
