"""The headline numbers of a run, each with its interval and definition, as stats.json and evaluate.json hold them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Json = Mapping[str, Any]

_ROWS = {"train": "training rows", "heldout": "held-out rows", "all": "rows"}
_QUALITY = (
    (
        "explained_variance",
        "Explained variance",
        "1 - SSE / SST over the whole split, SST about the split's mean, in float64. Predicting the mean gives 0, "
        "perfection 1.",
    ),
    (
        "explained_energy",
        "Explained energy",
        "Mean over rows of 1 - ||x - x_hat||² / ||x||², not centred: the number that the post calls 86 %.",
    ),
    (
        "normalized_mse",
        "Normalised MSE",
        "Mean over rows and coordinates of (x_hat - x)² / ||x||: the norm, not its square.",
    ),
    ("l1", "L1", "Mean over rows of the sum of all activations, without the coefficient."),
)
_LOSSES = (("original", "Loss, original"), ("sae", "Loss, SAE spliced in"), ("zero", "Loss, zeros at the site"))


@dataclass(frozen=True)
class Tile:
    """One number."""

    name: str
    value: float | None
    """As the document has it; None where it is undefined."""
    definition: str
    kind: Literal["number", "share"] = "number"
    """A share is shown as per cent."""
    unit: str = ""
    interval: tuple[float, float] | None = None
    """95 %, by the percentile bootstrap."""
    more: dict[str, float | None] = field(default_factory=dict)
    """Numbers that belong to it, by name, of the same kind."""


def tiles_of_statistics(s: Json) -> list[Tile]:
    """Reconstruction, L0 and dead features.

    Parameters
    ----------
    s
        The document of stats.json.
    """
    of = f"Over {s['n_rows']:,} {_ROWS[s['split']]}."
    intervals = ((s.get("intervals") or {}).get("splits") or {}).get(s["split"]) or {}
    held_out = (s.get("quality") or {}).get("heldout") or {}
    tiles = []
    for name, title, definition in _QUALITY:
        more = {"held out": held_out[name]} if s["split"] != "heldout" and name in held_out else {}
        tiles.append(Tile(title, s.get(name), f"{definition} {of}", interval=_pair(intervals.get(name)), more=more))
    l0 = s["l0"]
    tiles.append(
        Tile(
            "L0, mean",
            l0["mean"],
            f"Number of features above 0 on a row: mean, median, 99th percentile, largest. {of}",
            interval=_pair(intervals.get("l0_mean")),
            more={"median": l0["median"], "p99": l0["p99"], "max": l0["max"]},
        )
    )
    dead = f"Features that are never above 0. {of}"
    tiles.append(Tile("Dead features", s["n_dead"], dead, more={"of": s["d_sae"]}))
    return tiles


def tiles_of_evaluation(found: Json) -> list[Tile]:
    """Contrastive loss, loss recovered, zero-shot accuracy.

    Parameters
    ----------
    found
        The document of evaluate.json.
    """
    c = found["contrastive"]
    how = "captions repeat within a batch" if c["repeats_captions"] else "no caption twice in a batch"
    loss = (
        f"Contrastive loss: symmetric InfoNCE of images and captions with the model's own logit scale, batches of "
        f"{c['batch_size']:,} ({how}); guessing loses ln {c['batch_size']:,} = {c['ln_batch_size']:.3f} nats. "
        f"Over {c['n_images_in_batches']:,} images."
    )
    tiles = [
        Tile(title, way["loss"], loss, unit="nats", interval=_pair(way.get("loss_interval_images")))
        for name, title in _LOSSES
        if (way := c["ways"].get(name)) is not None
    ]
    if "loss_recovered" in c:
        definition = "(L_zero - L_SAE) / (L_zero - L_original): 1 of a perfect SAE, 0 of one no better than zeros."
        interval = _pair(c.get("loss_recovered_interval_images"))
        tiles.append(Tile("Loss recovered", c["loss_recovered"], definition, kind="share", interval=interval))
    shots = found["zero_shot"]
    for name, title in (("top1", "Zero-shot top-1, SAE"), ("top5", "Zero-shot top-5, SAE")):
        if "sae" not in shots or name not in shots["sae"]:
            continue
        k = name.removeprefix("top")
        tiles.append(
            Tile(
                title,
                shots["sae"][name],
                f"Share of {found['n_images']:,} images whose own caption is among the {k} nearest of "
                f"{found['n_classes']:,}, with the SAE's reconstruction in the place of the activations.",
                kind="share",
                interval=_pair(shots["sae"].get(f"{name}_interval")),
                more={"original": shots["original"][name]},
            )
        )
    return tiles


def _pair(interval: Any) -> tuple[float, float] | None:
    """An interval as the documents have it; None where one is undefined."""
    return None if interval is None or interval[0] is None else (interval[0], interval[1])
