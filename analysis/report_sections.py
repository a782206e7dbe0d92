"""The sections of a report, each of what one command wrote; where it has not run, a sentence that names it."""

import csv
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..store.errors import DamagedStoreError
from ..train.options import FREE_ON_RESUME, REMEDIES_OF, VARIANTS_OF, TrainOptions
from ..train.run_dir import SWEEP, Run
from . import report_findings as findings
from . import report_numbers as tables
from .align_options import AlignOptions
from .attributes_options import AttributesOptions
from .evaluate_options import EvaluateOptions
from .features import FEATURES_ZARR, open_features
from .given_options import words_of
from .options import EncodeOptions, StatsOptions
from .report_figures import alignment_figures, attributes_drawing, loss_drawing, sheets
from .report_page import Figure, Grid, Section
from .report_text import Beside
from .stored_statistics import StoredStatistics

_SHOWN_OPTIONS = (
    *("recipe", "variant", "expansion", "k", "l1", "l0_penalty", "target_l0", "groups", "lr", "warmup", "schedule"),
    *("batch_size", "rows", "normalize", "b_dec_init", "encoder_init", "error", "dead_remedy", "dead_after_rows"),
    *("precision", "seed"),
)
"""Options of the training that a reader wants; config.json has them all."""


def training_section(run: Run, drawn: Mapping[str, Figure]) -> Section:
    """How it was trained, with its curves."""
    common: dict[str, Any] = {"id": "training", "title": "Training"}
    if run.is_imported:
        of = run.config["imported"]
        return Section(
            **common, text=[f"This SAE was imported from {of['source']} ({of['format']}): its training is not known."]
        )
    options = run.options.to_json() | run.options.sparsity
    given = [
        [name, said(options[name])]
        for name in _SHOWN_OPTIONS
        if options.get(name) is not None and run.options.variant in VARIANTS_OF.get(name, (run.options.variant,))
    ]
    rows = [*given, ["steps", f"{run.config.get('steps', 0):,}"], ["passes", f"{run.config.get('passes', 0):.3g}"]]
    figures = [drawn["training"]] if "training" in drawn else []
    return Section(
        **common,
        command=f"thresher train {_word(run.store_path)} {_word(run.path)}{_train_words(run.options)}",
        text=[] if figures else ["The run holds no metrics.jsonl: there are no curves."],
        tables=[
            Grid(caption="Resolved options; config.json has all.", header=["Option", "Value"], rows=rows, is_text=True)
        ],
        figures=figures,
    )


def reconstruction_section(run: Run, stored: StoredStatistics, drawn: Mapping[str, Figure], post: Beside) -> Section:
    """How well it reconstructs, and L0."""
    intervals = stored.summary.get("intervals") or {}
    how = f"{intervals['n_resamples']:,} resamples of {intervals['resampled']}" if intervals else ""
    return Section(
        id="reconstruction",
        title="Reconstruction and sparsity",
        command=_encode(run, stored) + _stats(run, stored),
        text=[f"Intervals: {intervals['method']}, {how}."] if how else [],
        tables=tables.quality_tables(stored.summary, post),
        figures=[drawn["l0"]],
    )


def evaluation_section(run: Run, evaluation: dict[str, Any] | None, post: Beside) -> Section:
    """What it costs its tower."""
    common: dict[str, Any] = {"id": "loss", "title": "The SAE in its tower"}
    if evaluation is None:
        command = f"thresher evaluate {_word(run.path)} IMAGES"
        return Section(**common, absent=f"No contrastive loss and no zero-shot accuracy yet: `{command}` makes them.")
    more = [found for found in (findings.worst_classes(evaluation), findings.explanation_table(evaluation)) if found]
    text = [evaluation["held_out"] + "."] if evaluation.get("held_out") else []
    if post.is_shown and not evaluation["contrastive"]["repeats_captions"]:
        text.append(
            "The post's 1.895 (original) and 1.775 (SAE) are of batches of 1,024 whose captions repeat; "
            "`thresher evaluate --repeat-captions` computes those."
        )
    return Section(
        **common,
        command=f"thresher evaluate {_word(run.path)} {_word(evaluation['image_source'])}"
        + words_of(EvaluateOptions, evaluation["options"]),
        text=text,
        tables=[*findings.loss_tables(evaluation, post), *more],
        figures=[loss_drawing(run.path, evaluation["contrastive"])],
    )


def features_section(run: Run, stored: StoredStatistics, drawn: Mapping[str, Figure]) -> Section:
    """Density, activation and label entropy."""
    return Section(
        id="features",
        title="Features: density, activation, label entropy",
        command=_stats(run, stored),
        tables=[tables.feature_table(stored)],
        figures=[drawn[name] for name in ("scatter", "density", "label_entropy")],
    )


def cluster_section(run: Run, stored: StoredStatistics, post: Beside) -> Section:
    """The ultra-low-density cluster."""
    table = tables.cluster_table(stored.summary, post)
    text = [] if table else [f"There is no ultra-low-density cluster: {stored.summary['no_uld_because']}."]
    return Section(
        id="cluster",
        title="The ultra-low-density cluster",
        command=_stats(run, stored),
        text=text,
        tables=[table] if table else [],
    )


def examples_section(run: Run, stored: StoredStatistics) -> Section:
    """The contact sheets."""
    figures = sheets(run.path)
    again = f"`thresher stats {_word(run.path)} --overwrite`"
    return Section(
        id="examples",
        title="Features and their images",
        command=_stats(run, stored) if figures else "",
        figures=figures,
        absent="" if figures else f"No contact sheets: {again} draws them from a store with thumbnails.",
    )


def alignment_section(run: Run, alignment: dict[str, Any] | None, post: Beside) -> Section:
    """Features beside neurons."""
    common: dict[str, Any] = {"id": "alignment", "title": "Features and neurons"}
    if alignment is None:
        return Section(**common, absent=f"No neuron alignment yet: `thresher align {_word(run.path)}` makes it.")
    figures = alignment_figures(run.path, alignment)
    again = f"`thresher align {_word(run.path)} --overwrite`"
    return Section(
        **common,
        command=f"thresher align {_word(run.path)}" + words_of(AlignOptions, alignment.get("options", {})),
        text=[] if figures else [f"Its figures were not drawn: {again} draws them."],
        tables=[findings.alignment_table(alignment, post)],
        figures=figures,
    )


def classes_section(run: Run) -> Section:
    """What divides each class, and which share features."""
    common: dict[str, Any] = {"id": "classes", "title": "Classes"}
    classes = _lines(run.path, "classes.tsv", ("class", "n_rows", "n_own_features", "share_covered", "n_parts"))
    if classes is None:
        return Section(
            **common, absent=f"No classes yet: `thresher classes {_word(run.path)}` shows what divides each."
        )
    pairs = _lines(run.path, "class_pairs.tsv", ("class_a", "class_b", "n_shared", "expected", "p_adjusted"))
    return Section(
        **common,
        command=f"thresher classes {_word(run.path)}",
        text=[] if classes else ["No class has a feature of label entropy 0."],
        tables=findings.class_tables(classes, pairs or []) if classes else [],
    )


def attributes_section(run: Run, document: dict[str, Any] | None) -> Section:
    """How well single features know attributes."""
    common: dict[str, Any] = {"id": "attributes", "title": "Known attributes"}
    if document is None:
        command = f"thresher attributes {_word(run.path)} CSV"
        return Section(**common, absent=f"No known attributes yet: `{command}` scores the features on a table of them.")
    group = f", grouped by {document['group_column']}" if document["group_column"] else ""
    correction = document["correction"]
    text = [
        f"{document['n_in_store']:,} of the {document['n_listed']:,} images in {document['source']} are in the store; "
        f"{document['n_images']:,} were used{group}. Half of the {document['n_groups']:,} groups chose, the other half "
        "scores.",
        f"{correction[:1].upper()}{correction[1:]}. Intervals: {document['resamples']:,} resamples of the groups that "
        "score; none below 5 groups that have the attribute.",
    ]
    return Section(
        **common,
        command=f"thresher attributes {_word(run.path)} {_word(document['source'])}"
        + words_of(AttributesOptions, document.get("options") or _earlier_group(document)),
        text=text,
        tables=findings.attribute_tables(document),
        figures=[attributes_drawing(run.path, document)],
    )


def sweep_section(run: Run) -> Section:
    """The other SAEs of its sweep."""
    common: dict[str, Any] = {"id": "sweep", "title": "Beside other SAEs"}
    folder = run.path.absolute().parent
    if not (folder / SWEEP).exists():
        return Section(
            **common,
            absent="This run is not of a sweep: `thresher train STORE SWEEP` with several values of an option makes "
            "one, `thresher compare RUN RUN` shows several runs in one table.",
        )
    from .sweep_results import gather

    comparison = gather([folder])
    header = ["SAE", *comparison.varying, "L0", "explained variance", "normalised MSE", "dead", "status"]
    rows = [
        [
            each.name,
            *(said(each.varies.get(name)) for name in comparison.varying),
            *(said(value) for value in (each.l0, each.explained_variance, each.normalized_mse, each.n_dead)),
            each.status,
        ]
        for each in comparison.results
    ]
    pareto = folder / "figures" / "pareto.png"
    figures = [
        Figure(
            path=pareto,
            alt=f"L0 against explained variance of {len(rows)} SAEs.",
            caption="L0 against explained variance of the sweep's SAEs on held-out rows.",
        )
    ]
    return Section(
        **common,
        command=f"thresher sweep {_word(folder)}",
        tables=[Grid(caption=f"The sweep {folder.name}, on held-out rows.", header=header, rows=rows)],
        figures=figures if pareto.exists() else [],
    )


def _train_words(options: TrainOptions) -> str:
    """The options of a training but for those that change no weight, as a command line has them."""
    of_others = {name for name, variants in VARIANTS_OF.items() if options.variant not in variants}
    of_others |= {name for name, remedies in REMEDIES_OF.items() if options.resolved_dead_remedy not in remedies}
    return words_of(TrainOptions, options.to_json(), without={"recipe", *FREE_ON_RESUME, *of_others})


def _encode(run: Run, stored: StoredStatistics) -> str:
    """The command that encoded what the statistics count, up to the next; none where they encoded it themselves."""
    if stored.summary.get("options", {}).get("from_store"):
        return ""
    words = ""
    if (run.path / FEATURES_ZARR).exists():
        info = open_features(run.path).info
        kept = {"split": info.split, "precision": info.precision, "rows": info.n_asked}
        words = words_of(EncodeOptions, kept | {"store": None if info.is_training_store else info.store})
    return f"thresher encode {_word(run.path)}{words} && "


def _stats(run: Run, stored: StoredStatistics) -> str:
    """The command that made the statistics."""
    kept = stored.summary.get("options", {name: stored.summary[name] for name in ("split", "k", "min_labelled")})
    return f"thresher stats {_word(run.path)}{words_of(StatsOptions, kept)}"


def _earlier_group(document: Mapping[str, Any]) -> dict[str, Any]:
    """The options of attributes that an earlier version scored, which kept the groups alone."""
    return {"group": document["group_column"]} if document["source"] != "quickstart" else {}


def _lines(run_path: Path, name: str, columns: tuple[str, ...]) -> list[dict[str, str]] | None:
    """The lines of a table of the run; None where there is none."""
    path = run_path / name
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file, delimiter="\t")
            names, lines = reader.fieldnames, list(reader)
    except FileNotFoundError:
        return None
    if not names:
        return []  # no class has a feature of its own, or no pair shares one
    if not set(columns) <= set(names):
        raise DamagedStoreError(f"{path} is damaged: run the command that made it with --overwrite.")
    return lines


def said(value: Any) -> str:
    """A value of a configuration, to read."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _word(value: Any) -> str:
    return shlex.quote(os.fspath(value))
