"""The tables of a report of what `stats` wrote, and its first one: ours beside the post's."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .report_findings import aligned, losses
from .report_page import Grid, Number, NumberTable
from .report_text import Beside, in_brackets, percent, short, span
from .stored_statistics import StoredStatistics

Json = Mapping[str, Any]

_EV = (
    "1 - SSE / SST over all rows, SST about their mean, in float64. Predicting the mean gives 0, perfection 1. The "
    "post's 86 % is not centred: it stands at explained energy."
)
_QUALITY = {
    "explained_variance": ("Explained variance", _EV),
    "explained_energy": ("Explained energy", "Mean over rows of 1 - ||x - x_hat||² / ||x||², not centred."),
    "normalized_mse": (
        "Normalised MSE",
        "Mean over rows and coordinates of (x_hat - x)² / ||x||: the norm, not its square.",
    ),
    "mse": ("MSE", "Mean over rows and coordinates of (x_hat - x)²."),
    "l1": ("L1", "Mean over rows of the sum of all activations, without the coefficient."),
}
_SPLITS = {"train": "training rows", "heldout": "held-out rows", "all": "all rows"}
_ROWS = {"train": "training rows", "heldout": "held-out rows", "all": "rows in all"}


def glance(stored: StoredStatistics, evaluation: Json | None, alignment: Json | None, post: Beside) -> NumberTable:
    """The numbers that the post reports, ours beside them where the setting is the same."""
    s = stored.summary
    ours = [*_headline(s, post), *_of_cluster(s, post)]
    if evaluation is not None:
        ours += losses(evaluation, post, ways=("original", "sae"))
    if alignment is not None:
        ours += aligned(alignment, post)
    tower = "" if evaluation is None else f"; the losses over {evaluation['n_images']:,} images"
    return NumberTable(caption=f"At a glance, over {_rows(s)}{tower}.", numbers=ours)


def _headline(s: Json, post: Beside) -> list[Number]:
    intervals = _intervals(s, s["split"])
    return [
        Number(
            name="L0, mean",
            value=short(s["l0"]["mean"]),
            interval=span(intervals.get("l0_mean")),
            post=post.of("l0"),
            definition="Number of features above 0 on a row.",
        ),
        Number(
            name="L0, largest",
            value=f"{s['l0']['max']:,}",
            post=post.of("max_l0"),
            definition="On one row.",
        ),
        *_quality(s, s["split"], post),
        Number(
            name="Dead features",
            value=f"{s['n_dead']:,} of {s['d_sae']:,}",
            post=post.of("n_dead"),
            definition=f"Never above 0 on these {s['n_rows']:,} rows.",
        ),
    ]


def _quality(s: Json, split: str, post: Beside) -> list[Number]:
    found = s["quality"].get(split) or {}
    intervals = _intervals(s, split)
    return [
        Number(
            name=title,
            value=short(found[name]),
            interval=span(intervals.get(name)),
            post=post.of(name),
            definition=definition,
        )
        for name, (title, definition) in _QUALITY.items()
        if found.get(name) is not None
    ]


def quality_tables(s: Json, post: Beside) -> list[NumberTable | Grid]:
    """Reconstruction, split by split; the distribution of L0."""
    tables: list[NumberTable | Grid] = []
    splits = [split for split in _SPLITS if s["quality"].get(split)]
    if splits:
        columns = [{number.name: number for number in _quality(s, split, post)} for split in splits]
        numbers = {name: number for column in columns for name, number in column.items()}
        rows = [
            [
                name,
                *(_in_brackets(column.get(name)) for column in columns),
                *([number.post or "–"] if post.is_shown else []),
                number.definition,
            ]
            for name, number in numbers.items()
        ]
        header = ["Number", *(f"{s['quality'][split]['n_rows']:,} {_ROWS[split]} [95 %]" for split in splits)]
        header += [*(["The post"] if post.is_shown else []), "Definition"]
        tables.append(Grid(caption="Reconstruction.", header=header, rows=rows, ends_in_words=True))
    rows = [_l0_row("features > 0", s["l0"])]
    rows += [
        _l0_row(f"features > {name.removeprefix('l0_above_')}", s[name]) for name in s if name.startswith("l0_above_")
    ]
    if s.get("l0_without_uld"):
        rows.append(_l0_row("features > 0 outside the ULD cluster", s["l0_without_uld"]))
    tables.append(
        Grid(caption=f"L0 over {_rows(s)}.", header=["Counted", "mean", "median", "p99", "largest"], rows=rows)
    )
    return tables


def _in_brackets(number: Number | None) -> str:
    """A number with its interval; a dash where there is none, as for the explained variance of one row."""
    return "–" if number is None else f"{number.value} {in_brackets(number.interval)}".rstrip()


def _l0_row(name: str, l0: Json) -> list[str]:
    return [name, short(l0["mean"]), short(l0["median"]), short(l0["p99"]), f"{l0['max']:,}"]


def feature_table(stored: StoredStatistics) -> NumberTable:
    """The distributions of density and label entropy, as numbers."""
    s, statistics = stored.summary, stored.statistics
    density = statistics.density[statistics.is_alive]
    has_entropy = np.isfinite(statistics.label_entropy)
    entropy, effective_n = statistics.label_entropy[has_entropy], statistics.effective_n[has_entropy]
    numbers = [
        Number(
            name="Median density",
            value=short(float(np.median(density)) if len(density) else None),
            definition="Share of rows on which a feature is above 0, of those that fire. The post says sparsity.",
        ),
        Number(
            name="Median label entropy",
            value=f"{np.median(entropy):.3g} nats" if len(entropy) else "undefined",
            definition=f"H = -sum q ln q over the labels of a feature's up to {s['k']} largest rows, q proportional to "
            f"the activations; undefined below {s['min_labelled']} labelled ones.",
        ),
        Number(
            name="Effective sample size, median",
            value=short(float(np.median(effective_n)) if len(effective_n) else None),
            definition="1 / sum p² (Kish), p the share of each row in those activations: how many rows of equal weight "
            "a feature's label entropy rests on.",
        ),
        Number(
            name="Label entropy 0",
            value=f"{int((entropy == 0).sum()):,} of {len(entropy):,}",
            definition="Features whose largest rows are all of one class.",
        ),
        Number(
            name="Label entropy undefined",
            value=f"{s['n_entropy_undefined']:,}",
            definition="Features with too few labelled firing rows.",
        ),
    ]
    null = (s.get("details") or {}).get("null")
    if null:
        numbers.append(
            Number(
                name="Entropy as low as chance gives",
                value=f"{len(entropy) - null['n_at_least_p']:,} of {len(entropy):,}",
                definition=f"Features with an entropy that one of {null['n_draws']:,} draws of random labels reached "
                "too; the others' is lower than in any draw.",
            )
        )
    return NumberTable(caption=f"Features over {_rows(s)}.", numbers=numbers)


def _of_cluster(s: Json, post: Beside) -> list[Number]:
    uld = s["uld"]
    if uld is None:
        why = f" ({s['no_uld_because']})" if s.get("no_uld_because") else ""
        definition = f"Two clusters of mean top activation are not found{why}."
        return [Number(name="ULD cluster", value="none", post=post.of("uld"), definition=definition)]
    return [
        Number(
            name="ULD cluster",
            value=f"{uld['n_features']:,} features",
            post=post.of("uld"),
            definition="Features below the valley between two Gaussians fitted to log10 of the mean top activation.",
        ),
        Number(
            name="Coherence of the cluster",
            value=short(uld.get("coherence")),
            post=post.of("coherence"),
            definition="Mean pairwise cosine of the encoder vectors in it.",
        ),
    ]


def cluster_table(s: Json, post: Beside) -> NumberTable | None:
    """The ULD cluster; None where there is none."""
    uld = s["uld"]
    if uld is None:
        return None
    numbers = [
        *_of_cluster(s, post),
        Number(
            name="Coherence of the others", value=short(uld.get("coherence_rest")), definition="The same, outside it."
        ),
        Number(
            name="Between the two",
            value=short(uld.get("coherence_between")),
            definition="Mean cosine of one vector in it and one outside.",
        ),
    ]
    for name, what in (
        ("chance", "evenly from the sphere"),
        ("matched_chance", "with the covariance of the activations"),
    ):
        p99 = uld.get(f"coherence_{name}_p99")
        if p99 is not None:
            numbers.append(
                Number(
                    name="Chance, even directions" if name == "chance" else "Chance, shaped directions",
                    value=f"0 ± {short(uld[f'coherence_{name}_sd'])}",
                    definition=f"Mean pairwise cosine of as many directions, {what}; 99 % lie below {short(p99)}.",
                )
            )
    numbers += [
        Number(
            name="Share of alive features", value=percent(uld["share_of_alive"]), definition="That are in the cluster."
        ),
        Number(
            name="Share of firings", value=percent(uld["share_of_firings"]), definition="Of all activations, counted."
        ),
        Number(
            name="Share of activation mass",
            value=percent(uld["share_of_mass"]),
            definition="Of all activations, summed.",
        ),
        Number(
            name="Median density",
            value=f"{short(uld['median_density'])} (others {short(uld['median_density_rest'])})",
            definition="Share of rows on which a feature is above 0.",
        ),
    ]
    row = s.get("max_l0_row_uld")
    if row:
        numbers.append(
            Number(
                name="Of the largest L0",
                value=f"{row['n_uld']:,} of {row['l0']:,} ({percent(row['share_of_firings'])})",
                post=post.of("max_l0"),
                definition=f"Features of the cluster on row {row['row']:,}, the one with the largest L0; "
                f"{percent(row['share_of_mass'])} of its activation mass.",
            )
        )
    return NumberTable(caption="The ultra-low-density cluster.", numbers=numbers)


def _rows(s: Json) -> str:
    return f"{s['n_rows']:,} rows" + ("" if s["split"] == "all" else f" ({_SPLITS[s['split']]})")


def _intervals(s: Json, split: str) -> Json:
    found: Json = ((s.get("intervals") or {}).get("splits") or {}).get(split) or {}
    return found
