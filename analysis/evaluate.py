"""What an SAE in its place costs its tower, in all and class by class: `evaluate RUN IMAGES`."""

import json
import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._version import __version__
from ..progress import Reporter
from ..store.errors import StoreError
from ..store.files import FolderLock, write_atomically
from .bootstrap import described
from .class_damage import class_damage, write_classes
from .contrastive import POST_BATCH, Embeddings, Ints
from .evaluate_options import EvaluateOptions
from .evaluation_images import CaptionedImages
from .evaluation_numbers import contrastive_numbers, losses_of_images, zero_shot_numbers
from .evaluation_setting import Setting, open_setting
from .fidelity import contrastive_batches
from .folders import refuse_existing
from .given_options import kept_options
from .loss_explanation import explained
from .spliced_embeddings import embed_ways, ways_to_explain, ways_to_replace
from .zero_shot import zero_shot

EVALUATE_JSON, CLASSES_TSV = "evaluate.json", "evaluate_classes.tsv"
_LEAST_TRAINED_ON = 2 * POST_BATCH
"""Training images that `--explain` looks at, at least: two of the post's batches."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` computed and wrote."""

    run_path: Path
    document: dict[str, Any]
    """Of evaluate.json."""
    seconds: float


def evaluate(
    run_path: Path | str,
    images: str | Path | Sequence[str],
    options: EvaluateOptions | None = None,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Compare a run's tower with and without its SAE, into `RUN/evaluate.json` and `RUN/evaluate_classes.tsv`.

    Parameters
    ----------
    images
        As `harvest` takes them; they need labels. The run's training images are left out, by key.

    Raises
    ------
    ValueError
        When the images have no labels or names, all were trained on or none can be read, or the site is not one that
        can be spliced.
    StoreError
        When run, store or tower do not match, or there is an evaluation already.
    """
    start_s = time.monotonic()
    options, reporter = options or EvaluateOptions(), reporter or Reporter()
    run_path = Path(run_path)
    refuse_existing(run_path / EVALUATE_JSON, overwrite=options.overwrite)
    with open_setting(
        run_path,
        images,
        n_images=options.n_images,
        caption=options.caption,
        templates=options.templates,
        label_names=options.label_names,
        store_path=options.store,
        device=options.device,
        seed=options.seed,
        reporter=reporter,
    ) as setting:
        document = _evaluated(setting, options, reporter)
    with closing(FolderLock(run_path)):
        write_classes(run_path / CLASSES_TSV, document["classes"])
        text = json.dumps(_without_nan(document), indent=2, allow_nan=False, ensure_ascii=False)
        write_atomically(run_path / EVALUATE_JSON, text.encode("utf-8", "backslashreplace") + b"\n")
    return Evaluation(run_path, document, time.monotonic() - start_s)


def read_evaluation(run_path: Path | str) -> dict[str, Any] | None:
    """The document of a run's evaluate.json; None where it was not evaluated.

    Raises
    ------
    StoreError
        When it cannot be read.
    """
    path = Path(run_path) / EVALUATE_JSON
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreError(f"{path} cannot be read ({error}): run `thresher evaluate --overwrite`.") from error
    return dict(found)


def _evaluated(setting: Setting, options: EvaluateOptions, reporter: Reporter) -> dict[str, Any]:
    chosen, captions = setting.chosen, setting.captions
    read, embedded = _embedded(setting, chosen, options, reporter, ablations=True)
    own = chosen.own[read]
    if len(np.unique(own)) < 2:
        raise ValueError(
            f"the {len(own):,} images that can be read have one caption: telling captions apart needs two."
        )
    if len(read) < len(chosen.images):
        reporter.warn(f"{len(chosen.images) - len(read):,} of {len(chosen.images):,} images cannot be read")
    replaced = {way: each for way, each in embedded.items() if way in ("original", "sae", "zero", "mean")}
    batches = contrastive_batches(own, options.batch_size, repeat_captions=options.repeat_captions, seed=options.seed)
    losses = losses_of_images(replaced, captions.embeddings, own, batches, captions.logit_scale)
    predictions = {
        way: zero_shot(each, embedded["original"], setting.classes, own, captions.logit_scale)
        for way, each in replaced.items()
    }
    before, after = predictions["original"], predictions["sae"]
    return {
        "format": "thresher-evaluation",
        "format_version": 1,
        "site": setting.site.path,
        "target_site": setting.target.path if setting.target else None,
        "image_source": setting.images.description,
        "n_images": len(own),
        "n_unreadable": len(chosen.images) - len(own),
        "n_trained_on": setting.held_out.n_trained_on,
        "n_in_store": setting.held_out.n_in_store,
        "held_out": setting.note,
        "n_classes": len(chosen.names),
        "n_classes_with_images": len(np.unique(own)),
        "logit_scale": captions.logit_scale,
        "precision": setting.tower.precision,
        "options": kept_options(options),
        "intervals": {**described(seed=options.seed), "resampled": "images, and batches where there are 20"},
        "contrastive": {
            "repeats_captions": options.repeat_captions,
            **contrastive_numbers(losses, own, batches, options.seed),
        },
        "zero_shot": zero_shot_numbers(predictions, options.seed),
        "classes": class_damage(chosen.names, own, before.top1, after.top1, after.kl, after.agrees),
        "explanation": _explanation(setting, embedded, own, options, reporter) if options.explain else None,
        "thresher": __version__,
    }


def _embedded(
    setting: Setting, chosen: CaptionedImages, options: EvaluateOptions, reporter: Reporter, *, ablations: bool
) -> tuple[Ints, dict[str, Embeddings]]:
    ways = ways_to_replace(setting.tower, setting.sae, setting.site, target=setting.target, mean=setting.mean)
    if not ablations:
        ways = {way: ways[way] for way in ("original", "sae")}
    if options.explain:
        more = ways_to_explain(setting.tower, setting.sae, setting.site, target=setting.target, seed=options.seed)
        ways = {**ways, **more}
    return embed_ways(
        setting.tower,
        setting.images,
        chosen.images,
        setting.site,
        ways,
        images_at_once=options.images_at_once,
        reporter=reporter,
    )


def _explanation(
    setting: Setting, embedded: dict[str, Embeddings], own: Ints, options: EvaluateOptions, reporter: Reporter
) -> list[dict[str, Any]]:
    captions = setting.captions
    sets = [("held out" if setting.held_out.n_in_store else "given", embedded, own)]
    if setting.trained_on is not None:
        trained = setting.trained_on.sample(max(len(own), _LEAST_TRAINED_ON), options.seed)
        reporter.say(f"{len(trained.images):,} training images, to compare with")
        read, theirs = _embedded(setting, trained, options, reporter, ablations=False)
        sets.append(("trained on", theirs, trained.own[read]))
    return [
        record
        for what, each, labels in sets
        for record in explained(
            what,
            {way: rows for way, rows in each.items() if way not in ("zero", "mean")},
            captions.embeddings,
            labels,
            captions.logit_scale,
            batch_size=options.batch_size,
            seed=options.seed,
        )
    ]


def _without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
