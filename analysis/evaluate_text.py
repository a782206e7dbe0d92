"""How an evaluation reads on a terminal."""

from typing import Any

from ..progress import format_s
from .description import table_lines
from .evaluate import CLASSES_TSV, EVALUATE_JSON, Evaluation

_NAMES = {
    "original": "original",
    "sae": "SAE spliced in",
    "zero": "zeros",
    "mean": "mean of training rows",
    "with_error": "SAE + its error",
    "random_error": "random error",
}
_WORST = 10
_CLASS_WIDTH = 30


def format_evaluation(result: Evaluation) -> str:
    """The tables, the classes that the SAE damages most, where all of it is."""
    d = result.document
    lines = [
        f"{result.run_path}: {d['n_images']:,} images of {d['n_classes_with_images']:,} classes, {d['image_source']}, "
        f"in {d['precision']}; {format_s(result.seconds)}.",
        *_contrastive(d["contrastive"]),
        *_zero_shot(d),
        *_classes(d["classes"]),
    ]
    if d["explanation"]:
        lines += ["", *_explanation(d["explanation"])]
    lines += [
        "",
        "Intervals: 95 %, percentile bootstrap over images (a loss: of what each image adds, its batch",
        "held fixed); of classes Agresti and Min's for pairs. evaluate.json has those over batches too.",
        f"All of it: {result.run_path / EVALUATE_JSON}, {result.run_path / CLASSES_TSV}",
    ]
    return "\n".join(lines)


def _contrastive(c: dict[str, Any]) -> list[str]:
    b, m = c["batch_size"], c["n_batches"]
    how = "captions repeat" if c["repeats_captions"] else "no caption twice in one"
    floor = f"; of which repetition costs any model {c['floor']:.3f}" if c["floor"] else ""
    rows = [
        [
            _NAMES[way],
            f"{found['loss']:.4f}",
            _span(found["loss_interval_images"], ".4f"),
            "" if way == "original" else f"{found['difference']:+.4f}",
            "" if way == "original" else _span(found["difference_interval_images"], "+.4f"),
        ]
        for way, found in c["ways"].items()
    ]
    lines = [
        "",
        f"Contrastive loss in nats: {m:,} batch{'es' if m > 1 else ''} of {b:,}, {how}; guessing loses "
        f"ln {b} = {c['ln_batch_size']:.3f}{floor}",
        *_indented(["", "loss", "95 %", "- original", "95 %"], rows),
    ]
    for name, what in (("loss_recovered", "zeros lose"), ("loss_recovered_of_mean", "the mean loses")):
        if c.get(name) is not None and c[name] == c[name]:
            span = _span(c[f"{name}_interval_images"], ".1%")
            lines.append(f"  recovered of what {what}: {c[name]:.1%}{f' ({span})' if span else ''}")
    return lines


def _zero_shot(d: dict[str, Any]) -> list[str]:
    templates = d["options"]["templates"]
    texts = "the caption" if templates == "none" else f"open_clip's templates ({templates})"
    rows = [
        [
            _NAMES[way],
            f"{found['top1']:.1%}",
            _span(found["top1_interval"], ".1%"),
            f"{found['top5']:.1%}",
            "" if way == "original" else f"{found['agreement']:.1%}",
            "" if way == "original" else f"{found['mean_kl']:.4f}",
        ]
        for way, found in d["zero_shot"].items()
    ]
    return [
        "",
        f"Zero-shot among {d['n_classes']:,} classes, by {texts}; guessing is right {1 / d['n_classes']:.1%}",
        *_indented(["", "top-1", "95 %", "top-5", "same as original", "KL, nats"], rows),
    ]


def _classes(records: list[dict[str, Any]]) -> list[str]:
    hurt = [r for r in records if r["difference"] < 0]
    sure = sum(r["high"] < 0 for r in records)
    if not hurt:
        return ["", "No class is told less well with the SAE."]
    rows = [
        [
            _cut(r["class"]),
            f"{r['n']:,}",
            f"{r['top1_original']:.1%}",
            f"{r['top1_sae']:.1%}",
            f"{r['difference']:+.1%}",
            _span((r["low"], r["high"]), "+.1%"),
        ]
        for r in hurt[:_WORST]
    ]
    return [
        "",
        f"Classes whose top-1 falls: {len(hurt):,} of {len(records):,}, of which {sure:,} with an interval below 0 "
        f"(one in 40 would by chance). The worst:",
        *_indented(["class", "n", "original", "SAE", "difference", "95 %"], rows),
    ]


def _explanation(records: list[dict[str, Any]]) -> list[str]:
    losses, parts = [], []
    for r in records:
        ways = r["ways"]
        captions = f"repeat, {r['batch_size']}" if r["repeats_captions"] else f"once, {r['batch_size']}"
        losses.append(
            [
                f"{r['images']}, {r['n_images']:,}",
                captions,
                f"{r['floor']:.3f}",
                f"{ways['original']['loss']:.4f}",
                f"{ways['sae']['difference']:+.4f}",
                _span(ways["sae"]["difference_interval_images"], "+.4f"),
                f"{ways['with_error']['difference']:+.4f}",
                f"{ways['random_error']['difference']:+.4f}" if "random_error" in ways else "-",
            ]
        )
        scaled = r["best_scale"]
        parts.append(
            [
                f"{r['images']}, {r['n_images']:,}",
                captions,
                *(f"{r['parts'][name]['difference']:+.4f}" for name in ("captions", "images", "spread")),
                f"{scaled['difference']:+.4f}",
                f"{scaled['original']['logit_scale']:.3g} / {scaled['sae']['logit_scale']:.3g}",
            ]
        )
    return [
        "Why the loss changes. Captions: how often one may stand in a batch, and the batch. Floor: what",
        "repetition costs any model. The columns after `original` are differences from it.",
        *_indented(
            ["images", "captions", "floor", "original", "SAE", "95 %", "SAE + its error", "random error"], losses
        ),
        "",
        "Of the SAE's difference: image among captions, caption among images, how unevenly near the images",
        "of one caption are to it; and the difference where both have their best logit scale.",
        *_indented(["images", "captions", "captions", "images", "spread", "best scale", "scales"], parts),
    ]


def _indented(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"  {line}".rstrip() for line in table_lines(header, rows)]


def _span(found: Any, form: str) -> str:
    return "" if found is None else f"{found[0]:{form}} to {found[1]:{form}}"


def _cut(name: str) -> str:
    return name if len(name) <= _CLASS_WIDTH else name[: _CLASS_WIDTH - 1] + "…"
