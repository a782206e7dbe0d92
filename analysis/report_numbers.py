"""The tables of a report: each number with its value, interval, the post's number and its definition."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .post import NUMBERS
from .report_page import Grid, Number, NumberTable
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


@dataclass(frozen=True)
class Beside:
    """What the post published, where a run is of its setting."""

    is_shown: bool

    def of(self, name: str) -> str:
        """The post's number; empty where it has none, or the setting is another."""
        return NUMBERS.get(name, "") if self.is_shown else ""


def glance(stored: StoredStatistics, evaluation: Json | None, alignment: Json | None, post: Beside) -> NumberTable:
    """The numbers that the post reports, ours beside them where the setting is the same."""
    s = stored.summary
    ours = [*_headline(s, post), *_of_cluster(s, post)]
    if evaluation is not None:
        ours += _losses(evaluation, post, ways=("original", "sae"))
    if alignment is not None:
        ours += _aligned(alignment, post)
    return NumberTable(caption=f"At a glance, over {_rows(s)}.", numbers=ours)


def _headline(s: Json, post: Beside) -> list[Number]:
    intervals = _intervals(s, s["split"])
    return [
        Number(
            name="L0, mean",
            value=_short(s["l0"]["mean"]),
            interval=_span(intervals.get("l0_mean")),
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
            value=_short(found[name]),
            interval=_span(intervals.get(name)),
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
        rows = [
            [
                name,
                *(f"{column[name].value} {_in_brackets(column[name].interval)}".rstrip() for column in columns),
                *([column.post or "–"] if post.is_shown else []),
                column.definition,
            ]
            for name, column in columns[-1].items()
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


def _l0_row(name: str, l0: Json) -> list[str]:
    return [name, _short(l0["mean"]), _short(l0["median"]), _short(l0["p99"]), f"{l0['max']:,}"]


def feature_table(stored: StoredStatistics) -> NumberTable:
    """The distributions of density and label entropy, as numbers."""
    s, statistics = stored.summary, stored.statistics
    density = statistics.density[statistics.is_alive]
    entropy = statistics.label_entropy[np.isfinite(statistics.label_entropy)]
    numbers = [
        Number(
            name="Median density",
            value=_short(float(np.median(density)) if len(density) else None),
            definition="Share of rows on which a feature is above 0, of those that fire. The post says sparsity.",
        ),
        Number(
            name="Median label entropy",
            value=f"{np.median(entropy):.3g} nats" if len(entropy) else "undefined",
            definition=f"H = -sum q ln q over the labels of a feature's up to {s['k']} largest rows, q proportional to "
            f"the activations; undefined below {s['min_labelled']} labelled ones.",
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
            value=_short(uld.get("coherence")),
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
            name="Coherence of the others", value=_short(uld.get("coherence_rest")), definition="The same, outside it."
        ),
        Number(
            name="Between the two",
            value=_short(uld.get("coherence_between")),
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
                    value=f"0 ± {_short(uld[f'coherence_{name}_sd'])}",
                    definition=f"Mean pairwise cosine of as many directions, {what}; 99 % lie below {_short(p99)}.",
                )
            )
    numbers += [
        Number(
            name="Share of alive features", value=_percent(uld["share_of_alive"]), definition="That are in the cluster."
        ),
        Number(
            name="Share of firings", value=_percent(uld["share_of_firings"]), definition="Of all activations, counted."
        ),
        Number(
            name="Share of activation mass",
            value=_percent(uld["share_of_mass"]),
            definition="Of all activations, summed.",
        ),
        Number(
            name="Median density",
            value=f"{_short(uld['median_density'])} (others {_short(uld['median_density_rest'])})",
            definition="Share of rows on which a feature is above 0.",
        ),
    ]
    row = s.get("max_l0_row_uld")
    if row:
        numbers.append(
            Number(
                name="Of the largest L0",
                value=f"{row['n_uld']:,} of {row['l0']:,} ({_percent(row['share_of_firings'])})",
                post=post.of("max_l0"),
                definition=f"Features of the cluster on row {row['row']:,}, the one with the largest L0; "
                f"{_percent(row['share_of_mass'])} of its activation mass.",
            )
        )
    return NumberTable(caption="The ultra-low-density cluster.", numbers=numbers)


def loss_tables(evaluation: Json, post: Beside) -> list[NumberTable | Grid]:
    """Contrastive loss, loss recovered, zero-shot accuracy."""
    c = evaluation["contrastive"]
    numbers = _losses(evaluation, post, ways=tuple(c["ways"]))
    for name, what in (("loss_recovered", "zero"), ("loss_recovered_of_mean", "mean")):
        if c.get(name) is not None:
            numbers.append(
                Number(
                    name="Loss recovered" if what == "zero" else "Loss recovered of the mean's",
                    value=_percent(c[name]),
                    interval=_span(c.get(f"{name}_interval_images"), percent=True),
                    definition=f"(L_{what} - L_SAE) / (L_{what} - L_original): 1 of a perfect SAE.",
                )
            )
    how = "captions repeat, as in the post" if c["repeats_captions"] else "no caption twice in a batch"
    caption = (
        f"Contrastive loss over {evaluation['n_images']:,} images of {evaluation['image_source']}; batches of "
        f"{c['batch_size']:,}, {how}; guessing loses ln {c['batch_size']} = {c['ln_batch_size']:.3f} nats."
    )
    shots = [
        [
            _WAYS.get(way, way),
            f"{_percent(found['top1'])} {_bracket(found.get('top1_interval'), percent=True)}",
            f"{_percent(found['top5'])} {_bracket(found.get('top5_interval'), percent=True)}",
            "–" if way == "original" else f"{_percent(found['agreement'])}",
        ]
        for way, found in evaluation["zero_shot"].items()
    ]
    header = ["Tower with", "top-1 [95 %]", "top-5 [95 %]", "same class as the original"]
    zero_shot = Grid(
        caption=f"Zero-shot accuracy among {evaluation['n_classes']:,} classes.", header=header, rows=shots
    )
    return [NumberTable(caption=caption, numbers=numbers), zero_shot]


def _losses(evaluation: Json, post: Beside, ways: Sequence[str]) -> list[Number]:
    c = evaluation["contrastive"]
    # Batches of another protocol have another floor and another ceiling: the post's number belongs to its own.
    of_post = post if c["repeats_captions"] else Beside(False)
    return [
        Number(
            name=f"Contrastive loss, {_WAYS.get(way, way)}",
            value=f"{c['ways'][way]['loss']:.4f} nats",
            interval=_span(c["ways"][way].get("loss_interval_images")),
            post=of_post.of(f"contrastive_loss_{way}"),
            definition="Symmetric InfoNCE of images and captions with the model's own logit scale.",
        )
        for way in ways
        if way in c["ways"]
    ]


def worst_classes(evaluation: Json, n: int = 10) -> Grid | None:
    """The classes that the SAE damages most; None where it damages none."""
    hurt = [each for each in evaluation.get("classes") or [] if each["difference"] < 0][:n]
    rows = [
        [
            str(each["class"]),
            f"{each['n']:,}",
            _percent(each["top1_original"]),
            _percent(each["top1_sae"]),
            f"{100 * each['difference']:+.1f} % {_bracket((each['low'], each['high']), percent=True)}",
        ]
        for each in hurt
    ]
    header = ["Class", "images", "top-1, original", "top-1, SAE", "difference [95 %]"]
    return Grid(caption="The classes whose zero-shot accuracy falls most.", header=header, rows=rows) if rows else None


def _aligned(alignment: Json, post: Beside) -> list[Number]:
    main = alignment["sides"]["encoder"]["main"]
    features, chance = main["features"]["signed"] or main["features"]["absolute"], main["chance"]
    word = "signed" if main["features"]["signed"] else "absolute"
    level = features["chance_level"].get("isotropic")
    quantile = f"{100 * alignment['chance_quantile']:g}"
    low, high = (chance["isotropic"][word][q] for q in ("0.01", "0.99"))
    return [
        Number(
            name="Largest cosine of chance",
            value=f"{low:.3f} to {high:.3f}",
            post=post.of("chance_cosine"),
            definition=f"1st to 99th percentile of the largest {word} cosine of an even random direction with one of "
            f"the {main['n_vectors']:,} output vectors of block {main['layer']} (0-based).",
        ),
        Number(
            name="Features above chance",
            value=_percent(features["share_above_chance"].get("isotropic")),
            post=post.of("share_above_chance"),
            definition=f"Share of the {alignment['n_counted']:,} {alignment['counted']} whose largest {word} cosine is "
            f"above {_short(level)}, the {quantile}th percentile of chance.",
        ),
    ]


def alignment_table(alignment: Json, post: Beside) -> NumberTable:
    """Neuron alignment against both kinds of chance."""
    side = alignment["sides"]["encoder"]
    numbers = _aligned(alignment, post)
    main = side["main"]
    word = "signed" if main["features"]["signed"] else "absolute"
    shaped = main["features"][word]["share_above_chance"].get("covariance")
    if shaped is not None:
        numbers.append(
            Number(
                name="Features above shaped chance",
                value=_percent(shaped),
                definition="The same against random directions with the covariance of the activations.",
            )
        )
    for kind, what in (("isotropic", "even"), ("covariance", "shaped")):
        tests = side["aligned"].get(f"{word}_{kind}")
        if tests:
            numbers.append(
                Number(
                    name=f"Aligned features, {what} chance",
                    value=f"{tests['n_aligned']:,} of {tests['n_tested']:,}",
                    definition=f"By p-values against {what} random directions, adjusted to a false discovery rate of "
                    f"{alignment['fdr']:g}.",
                )
            )
    few = side["neurons_per_feature"].get(f"{word}_isotropic")
    if few and few["n_features"]:
        numbers.append(
            Number(
                name="Fewer than 5 neurons",
                value=_percent(few["share_fewer_than_5"]),
                post=post.of("neurons_per_feature"),
                definition=f"Share of the {few['n_features']:,} features with a neuron above {few['above']:.3f} that "
                "have fewer than 5.",
            )
        )
    if side.get("earlier"):
        tests = side["earlier"]["aligned"].get(f"{word}_isotropic")
        if tests:
            numbers.append(
                Number(
                    name="Aligned with earlier blocks",
                    value=f"{tests['n_aligned']:,} of {tests['n_tested']:,}",
                    post=post.of("earlier_blocks"),
                    definition=f"With the MLPs of the {side['earlier']['n_blocks']} earlier blocks, adjusted likewise.",
                )
            )
    for kind, neurons in alignment["neurons"].items():
        numbers.append(_neurons(kind, neurons["label_entropy"]))
    return NumberTable(caption="Encoder vectors beside what the block's neurons write.", numbers=numbers)


def _neurons(kind: str, found: Json) -> Number:
    by = {"mlp_act": "their activations", "projection": "projections on their output vectors"}.get(kind, kind)
    difference = found["difference"]
    return Number(
        name="Label entropy, neurons less features",
        value=f"{_short(difference['value'])} nats",
        interval=_span((difference["low"], difference["high"])),
        definition=f"Difference of medians, the neurons by {by}: above 0, features are more selective. Medians "
        f"{_short(found['median_features'])} and {_short(found['median_neurons'])} nats.",
    )


def attribute_tables(document: Json, n_best: int = 20) -> list[NumberTable | Grid]:
    """How many attributes are known, and the best known ones."""
    counts = [
        [
            each["name"],
            f"{each['n_features']:,}",
            f"{each['f1_at_least_05']:,}",
            f"{each['f1_at_least_07']:,}",
            f"{_digits(each['mean_f1'])} {_bracket(each['mean_f1_interval'])}",
            "–" if each["slug"] == "sae" else f"{_digits(each['behind_sae'])} {_bracket(each['behind_sae_interval'])}",
            f"{each['precision_at_least_09']:,}",
            f"{each['n_significant']:,}",
        ]
        for each in document["counts"]
    ]
    header = ["Single features of", "features", "F1 ≥ 0.5", "F1 ≥ 0.7", "mean F1 [95 %]", "behind the SAE [95 %]"]
    header += ["P@20 ≥ 0.9", "beyond chance"]
    best = [
        [
            f"{each['kind']}: {each['value']}",
            f"{each['n_pictures']:,}",
            str(each["feature"]),
            f"{_digits(each['f1'], 2)} {_bracket(each['f1_interval'], 2)}",
            f"{_digits(each['precision_at_20'], 2)} {_bracket(each['precision_interval'], 2)}",
            _short(each["p_adjusted"]),
        ]
        for each in document["attributes"][:n_best]
    ]
    names = ["Attribute", "images", "feature", "F1 [95 %]", "precision at 20 [95 %]", "adjusted p"]
    caption = f"How many of {document['n_scored']:,} attributes single features know."
    shown = f"The {len(best)} best known attributes; attributes.tsv has all {len(document['attributes']):,}."
    return [Grid(caption=caption, header=header, rows=counts), Grid(caption=shown, header=names, rows=best)]


_WAYS = {
    "original": "as it is",
    "sae": "SAE spliced in",
    "zero": "zeros",
    "mean": "mean of training rows",
    "with_error": "SAE and its error",
    "random_error": "random error",
}


def _rows(s: Json) -> str:
    return f"{s['n_rows']:,} rows" + ("" if s["split"] == "all" else f" ({_SPLITS[s['split']]})")


def _intervals(s: Json, split: str) -> Json:
    found: Json = ((s.get("intervals") or {}).get("splits") or {}).get(split) or {}
    return found


def _short(value: Any) -> str:
    """Four figures, zeros kept: 0.9000 says more than 0.9; integers as they are."""
    if value is None:
        return "undefined"
    text = f"{value:#.4g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"
    return text.rstrip(".")


def _digits(value: Any, digits: int = 3) -> str:
    return "undefined" if value is None else f"{value:.{digits}f}"


def _percent(value: Any) -> str:
    return "undefined" if value is None else f"{100 * value:.1f} %"


def _span(found: Sequence[Any] | None, *, percent: bool = False) -> str:
    if found is None or found[0] is None:
        return ""
    if percent:
        return f"{100 * found[0]:.1f} to {100 * found[1]:.1f} %"
    return f"{_short(found[0])} to {_short(found[1])}"


def _in_brackets(interval: str) -> str:
    return f"[{interval.replace(' to ', ', ')}]" if interval else ""


def _bracket(found: Sequence[Any] | None, digits: int = 3, *, percent: bool = False) -> str:
    if found is None or found[0] is None:
        return ""
    if percent:
        return f"[{100 * found[0]:.1f}, {100 * found[1]:.1f}]"
    return f"[{found[0]:.{digits}f}, {found[1]:.{digits}f}]"
