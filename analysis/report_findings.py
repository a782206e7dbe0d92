"""The tables of a report of what `evaluate`, `align`, `attributes` and `classes` wrote."""

from collections.abc import Mapping, Sequence
from typing import Any

from .report_page import Grid, Number, NumberTable
from .report_text import Beside, bracket, digits, percent, short, span

Json = Mapping[str, Any]

_WAYS = {
    "original": "as it is",
    "sae": "SAE spliced in",
    "zero": "zeros",
    "mean": "mean of training rows",
    "with_error": "SAE and its error",
    "random_error": "random error",
}


def loss_tables(evaluation: Json, post: Beside) -> list[NumberTable | Grid]:
    """Contrastive loss, loss recovered, zero-shot accuracy."""
    c = evaluation["contrastive"]
    numbers = losses(evaluation, post, ways=tuple(c["ways"]))
    for name, what in (("loss_recovered", "zero"), ("loss_recovered_of_mean", "mean")):
        if c.get(name) is not None:
            numbers.append(
                Number(
                    name="Loss recovered" if what == "zero" else "Loss recovered of the mean's",
                    value=percent(c[name]),
                    interval=span(c.get(f"{name}_interval_images"), percent=True),
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
            f"{percent(found['top1'])} {bracket(found.get('top1_interval'), percent=True)}",
            f"{percent(found['top5'])} {bracket(found.get('top5_interval'), percent=True)}",
            "–" if way == "original" else f"{percent(found['agreement'])}",
        ]
        for way, found in evaluation["zero_shot"].items()
    ]
    header = ["Tower with", "top-1 [95 %]", "top-5 [95 %]", "same class as the original"]
    zero_shot = Grid(
        caption=f"Zero-shot accuracy among {evaluation['n_classes']:,} classes.", header=header, rows=shots
    )
    return [NumberTable(caption=caption, numbers=numbers), zero_shot]


def losses(evaluation: Json, post: Beside, ways: Sequence[str]) -> list[Number]:
    """Contrastive losses of some ways to replace the site."""
    c = evaluation["contrastive"]
    # Batches of another protocol have another floor and another ceiling: the post's number belongs to its own.
    of_post = post if c["repeats_captions"] else Beside(False)
    return [
        Number(
            name=f"Contrastive loss, {_WAYS.get(way, way)}",
            value=f"{c['ways'][way]['loss']:.4f} nats",
            interval=span(c["ways"][way].get("loss_interval_images")),
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
            percent(each["top1_original"]),
            percent(each["top1_sae"]),
            f"{100 * each['difference']:+.1f} % {bracket((each['low'], each['high']), percent=True)}",
        ]
        for each in hurt
    ]
    header = ["Class", "images", "top-1, original", "top-1, SAE", "difference [95 %]"]
    return Grid(caption="The classes whose zero-shot accuracy falls most.", header=header, rows=rows) if rows else None


def explanation_table(evaluation: Json) -> Grid | None:
    """The loss with and without repeated captions and the SAE's error; None where `--explain` was not asked for."""
    rows = [
        [
            f"{each['n_images']:,} {each['images']} images",
            f"{'repeat' if each['repeats_captions'] else 'once'}, batches of {each['batch_size']:,}",
            digits(each["floor"]),
            digits(each["ways"]["original"]["loss"], 4),
            *(
                f"{each['ways'][way]['difference']:+.4f} {bracket(each['ways'][way]['difference_interval_images'], 4)}"
                if way in each["ways"]
                else "–"
                for way in ("sae", "with_error", "random_error")
            ),
        ]
        for each in evaluation.get("explanation") or []
    ]
    caption = (
        "Why the loss with the SAE may be the lower: contrastive loss in nats, and differences from the original with "
        "the SAE, with its error added back, and with an error of the same size in a random direction. The floor is "
        "what repeated captions cost any model."
    )
    header = [
        "Images",
        "captions",
        "floor",
        "original",
        "SAE [95 %]",
        "SAE and its error [95 %]",
        "random error [95 %]",
    ]
    return Grid(caption=caption, header=header, rows=rows) if rows else None


def aligned(alignment: Json, post: Beside) -> list[Number]:
    """The two numbers of an alignment that the post leads with."""
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
            value=percent(features["share_above_chance"].get("isotropic")),
            post=post.of("share_above_chance"),
            definition=f"Share of the {alignment['n_counted']:,} {alignment['counted']} whose largest {word} cosine is "
            f"above {short(level)}, the {quantile}th percentile of chance.",
        ),
    ]


def alignment_table(alignment: Json, post: Beside) -> NumberTable:
    """Neuron alignment against both kinds of chance."""
    side = alignment["sides"]["encoder"]
    numbers = aligned(alignment, post)
    main = side["main"]
    word = "signed" if main["features"]["signed"] else "absolute"
    shaped = main["features"][word]["share_above_chance"].get("covariance")
    if shaped is not None:
        numbers.append(
            Number(
                name="Features above shaped chance",
                value=percent(shaped),
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
                value=percent(few["share_fewer_than_5"]),
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
        value=f"{short(difference['value'])} nats",
        interval=span((difference["low"], difference["high"])),
        definition=f"Difference of medians, the neurons by {by}: above 0, features are more selective. Medians "
        f"{short(found['median_features'])} and {short(found['median_neurons'])} nats.",
    )


def attribute_tables(document: Json, n_best: int = 20) -> list[NumberTable | Grid]:
    """How many attributes are known, and the best known ones."""
    counts = [
        [
            each["name"],
            f"{each['n_features']:,}",
            f"{each['f1_at_least_05']:,}",
            f"{each['f1_at_least_07']:,}",
            f"{digits(each['mean_f1'])} {bracket(each['mean_f1_interval'])}",
            "–" if each["slug"] == "sae" else f"{digits(each['behind_sae'])} {bracket(each['behind_sae_interval'])}",
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
            f"{digits(each['f1'], 2)} {bracket(each['f1_interval'], 2)}",
            f"{digits(each['precision_at_20'], 2)} {bracket(each['precision_interval'], 2)}",
            short(each["p_adjusted"]),
        ]
        for each in document["attributes"][:n_best]
    ]
    names = ["Attribute", "images", "feature", "F1 [95 %]", "precision at 20 [95 %]", "adjusted p"]
    others = {each["slug"]: each["name"] for each in document["counts"] if each["slug"] != "sae"}
    slug = "untrained" if "untrained" in others else "random"  # the strictest control that there is
    if slug in others:
        names.append(f"F1 of the {others[slug]}")
        for row, each in zip(best, document["attributes"], strict=False):
            row.append(digits(each["f1_of"][slug], 2))
    caption = f"How many of {document['n_scored']:,} attributes single features know."
    shown = f"The {len(best)} best known attributes; attributes.tsv has all {len(document['attributes']):,}."
    return [Grid(caption=caption, header=header, rows=counts), Grid(caption=shown, header=names, rows=best)]


def class_tables(
    classes: Sequence[Mapping[str, str]], pairs: Sequence[Mapping[str, str]], n: int = 15
) -> list[NumberTable | Grid]:
    """The classes with the most features of their own, and the pairs of classes that share the most beyond chance."""
    rows = [
        [
            each["class"],
            f"{int(each['n_rows']):,}",
            f"{int(each['n_own_features']):,}",
            percent(float(each["share_covered"])),
            f"{int(each['n_parts']):,}",
            short(float(each["effective_parts"])),
        ]
        for each in classes[:n]
    ]
    header = ["Class", "rows", "own features", "rows covered", "parts", "effective parts"]
    caption = (
        "The classes with the most features of label entropy 0, the share of their rows that those cover, and into how "
        f"many parts they divide them; classes.tsv has all {len(classes):,}."
    )
    tables: list[NumberTable | Grid] = [Grid(caption=caption, header=header, rows=rows)]
    shared = [
        [
            f"{each['class_a']} and {each['class_b']}",
            f"{int(each['n_shared']):,}",
            short(float(each["expected"])),
            f"{int(each['n_a']):,}, {int(each['n_b']):,}",
            short(float(each["p_adjusted"])),
        ]
        for each in pairs[:n]
    ]
    if shared:
        names = ["Classes", "features shared", "by chance", "of each", "adjusted p"]
        told = f"The pairs of classes that share features most surely; class_pairs.tsv has all {len(pairs):,}."
        tables.append(Grid(caption=told, header=names, rows=shared))
    return tables
