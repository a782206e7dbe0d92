"""Everything that is known of a run as one HTML page: `report RUN`."""

import json
import os
import shlex
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._version import __version__
from ..progress import Reporter
from ..store.errors import DamagedStoreError, StoreError
from ..store.files import FolderLock, write_atomically
from ..store.reader import ActivationStore, open_store
from ..train.options import VARIANTS_OF
from ..train.run_dir import SWEEP, Run, open_run
from . import report_numbers as tables
from .folders import refuse_existing
from .post import differences
from .report_figures import alignment_figures, attributes_drawing, draw_statistics, loss_drawing, sheets
from .report_numbers import Beside
from .report_page import Figure, Grid, Page, Section, render
from .stored_statistics import StoredStatistics, open_statistics

REPORT_HTML = "report.html"
_SHOWN_OPTIONS = (
    *("recipe", "variant", "expansion", "k", "l1", "l0_penalty", "target_l0", "groups", "lr", "warmup", "schedule"),
    *("batch_size", "rows", "normalize", "b_dec_init", "encoder_init", "error", "dead_remedy", "dead_after_rows"),
    *("precision", "seed"),
)
"""Options of the training that a reader wants; config.json has them all."""


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """What `report` wrote."""

    path: Path
    size_bytes: int
    n_figures: int
    absent: list[str]
    """What the page lacks, with the command that makes it."""


def report(run_path: Path | str, *, overwrite: bool = False, reporter: Reporter | None = None) -> ReportResult:
    """Write `RUN/report.html`, one page with nothing outside it, and the figures that it shows, into `RUN/figures`.

    What a command has not computed yet is a sentence that names the command.

    Raises
    ------
    StoreError
        When the run has no statistics, a file in it is damaged, or there is a report already.
    """
    run_path, reporter = Path(run_path), reporter or Reporter()
    run = open_run(run_path)
    refuse_existing(run_path / REPORT_HTML, overwrite=overwrite)
    stored = open_statistics(run_path)
    with closing(FolderLock(run_path)):
        reporter.say(f"drawing the figures into {run_path / 'figures'}")
        page = _page(run, stored)
        html = render(page).encode("utf-8", "replace")
        write_atomically(run_path / REPORT_HTML, html)
    return ReportResult(
        path=run_path / REPORT_HTML,
        size_bytes=len(html),
        n_figures=sum(len(section.figures) for section in page.sections),
        absent=[section.absent for section in page.sections if section.absent],
    )


def _page(run: Run, stored: StoredStatistics) -> Page:
    store = _store(run)
    label_names = store.label_names if store is not None else None
    unlike = differences(run.provenance if run.has_store else {}, run.known_site, label_names)
    post = Beside(not unlike)
    evaluation, alignment = (_document(run.path, name) for name in ("evaluate.json", "alignment.json"))
    attributes = _document(run.path, "attributes.json")
    drawn = draw_statistics(run.path, stored)
    sections = [
        Section(
            id="glance",
            title="At a glance",
            text=[_about_post(unlike)],
            tables=[tables.glance(stored, evaluation, alignment, post)],
        ),
        _training(run, drawn),
        _reconstruction(run, stored, drawn, post),
        _evaluation(run, evaluation, post),
        _features(run, stored, drawn),
        _cluster(run, stored, post),
        _examples(run),
        _alignment(run, alignment, post),
        _attributes(run, attributes),
        _sweep(run),
    ]
    return Page(
        title=f"Sparse autoencoder {run.path.absolute().name}",
        summary=_summary(run, stored),
        sections=sections,
        provenance=_provenance(run, stored, store),
    )


def _summary(run: Run, stored: StoredStatistics) -> list[str]:
    s, site = stored.summary, run.known_site
    what = f"{s['d_sae']:,} features of {s['d_in']:,} inputs"
    tower = f", the tower {run.provenance['model']} ({run.provenance['pretrained']})" if run.has_store else ""
    where = f", {site}" if site is not None else ""
    lines = [f"{what}{tower}{where}. Statistics over {s['n_rows']:,} rows (split: {s['split']})."]
    lines.append(
        "Intervals are 95 % bootstrap intervals unless said otherwise. Layers are 0-based: layer 22 is the 23rd block."
    )
    return lines


def _about_post(unlike: list[str]) -> str:
    name = (
        "Hugo Fry, Towards Multimodal Interpretability: Learning Sparse Interpretable Features in Vision Transformers, "
        "2024"
    )
    if unlike:
        why = "; ".join(unlike)
        return f"The numbers of the post ({name}) are not shown beside these, since the setting differs: {why}."
    return f"The post is {name}. Its numbers are those it published, of the same tower, layer, token and images."


def _training(run: Run, drawn: Mapping[str, Figure]) -> Section:
    common: dict[str, Any] = {"id": "training", "title": "Training"}
    if run.is_imported:
        of = run.config["imported"]
        return Section(
            **common, text=[f"This SAE was imported from {of['source']} ({of['format']}): its training is not known."]
        )
    options = run.options.to_json() | run.options.sparsity
    given = [
        [name, _said(options[name])]
        for name in _SHOWN_OPTIONS
        if options.get(name) is not None and run.options.variant in VARIANTS_OF.get(name, (run.options.variant,))
    ]
    rows = [*given, ["steps", f"{run.config.get('steps', 0):,}"], ["passes", f"{run.config.get('passes', 0):.3g}"]]
    figures = [drawn["training"]] if "training" in drawn else []
    return Section(
        **common,
        command=f"thresher train {_word(run.store_path)} {_word(run.path)}",
        text=[] if figures else ["The run holds no metrics.jsonl: there are no curves."],
        tables=[
            Grid(caption="Resolved options; config.json has all.", header=["Option", "Value"], rows=rows, is_text=True)
        ],
        figures=figures,
    )


def _reconstruction(run: Run, stored: StoredStatistics, drawn: Mapping[str, Figure], post: Beside) -> Section:
    intervals = stored.summary.get("intervals") or {}
    how = f"{intervals['n_resamples']:,} resamples of {intervals['resampled']}" if intervals else ""
    return Section(
        id="reconstruction",
        title="Reconstruction and sparsity",
        command=f"thresher encode {_word(run.path)} && {_stats(run, stored)}",
        text=[f"Intervals: {intervals['method']}, {how}."] if how else [],
        tables=tables.quality_tables(stored.summary, post),
        figures=[drawn["l0"]],
    )


def _evaluation(run: Run, evaluation: dict[str, Any] | None, post: Beside) -> Section:
    common: dict[str, Any] = {"id": "loss", "title": "The SAE in its tower"}
    if evaluation is None:
        command = f"thresher evaluate {_word(run.path)} IMAGES"
        return Section(**common, absent=f"No contrastive loss and no zero-shot accuracy yet: `{command}` makes them.")
    worst = tables.worst_classes(evaluation)
    text = [evaluation["held_out"] + "."] if evaluation.get("held_out") else []
    if post.is_shown and not evaluation["contrastive"]["repeats_captions"]:
        text.append(
            "The post's 1.895 (original) and 1.775 (SAE) are of batches of 1,024 whose captions repeat; "
            "`thresher evaluate --repeat-captions` computes those."
        )
    return Section(
        **common,
        command=f"thresher evaluate {_word(run.path)} {_word(evaluation['image_source'])}"
        + _given(evaluation["options"], "n_images", "caption", "templates", "batch_size", "repeat_captions", "seed"),
        text=text,
        tables=[*tables.loss_tables(evaluation, post), *([worst] if worst else [])],
        figures=[loss_drawing(run.path, evaluation["contrastive"])],
    )


def _features(run: Run, stored: StoredStatistics, drawn: Mapping[str, Figure]) -> Section:
    return Section(
        id="features",
        title="Features: density, activation, label entropy",
        command=_stats(run, stored),
        tables=[tables.feature_table(stored)],
        figures=[drawn[name] for name in ("scatter", "density", "label_entropy")],
    )


def _cluster(run: Run, stored: StoredStatistics, post: Beside) -> Section:
    table = tables.cluster_table(stored.summary, post)
    text = [] if table else [f"There is no ultra-low-density cluster: {stored.summary['no_uld_because']}."]
    return Section(
        id="cluster",
        title="The ultra-low-density cluster",
        command=_stats(run, stored),
        text=text,
        tables=[table] if table else [],
    )


def _examples(run: Run) -> Section:
    figures = sheets(run.path)
    again = f"`thresher stats {_word(run.path)} --overwrite`"
    return Section(
        id="examples",
        title="Features and their images",
        command=f"thresher stats {_word(run.path)}" if figures else "",
        figures=figures,
        absent="" if figures else f"No contact sheets: {again} draws them from a store with thumbnails.",
    )


def _alignment(run: Run, alignment: dict[str, Any] | None, post: Beside) -> Section:
    common: dict[str, Any] = {"id": "alignment", "title": "Features and neurons"}
    if alignment is None:
        return Section(**common, absent=f"No neuron alignment yet: `thresher align {_word(run.path)}` makes it.")
    return Section(
        **common,
        command=f"thresher align {_word(run.path)}",
        tables=[tables.alignment_table(alignment, post)],
        figures=alignment_figures(run.path),
    )


def _attributes(run: Run, document: dict[str, Any] | None) -> Section:
    common: dict[str, Any] = {"id": "attributes", "title": "Known attributes"}
    if document is None:
        command = f"thresher attributes {_word(run.path)} CSV"
        return Section(**common, absent=f"No known attributes yet: `{command}` scores the features on a table of them.")
    group = f", grouped by {document['group_column']}" if document["group_column"] else ""
    text = [
        f"{document['n_in_store']:,} of the {document['n_listed']:,} images in {document['source']} are in the store; "
        f"{document['n_images']:,} were used{group}. Half of the {document['n_groups']:,} groups chose, the other half "
        "scores.",
        f"{document['correction'].capitalize()}. Intervals: {document['resamples']:,} resamples of the groups that "
        "score; none below 5 groups that have the attribute.",
    ]
    return Section(
        **common,
        command=f"thresher attributes {_word(run.path)} {_word(document['source'])}"
        + (f" --group {_word(document['group_column'])}" if document["group_column"] not in (None, "emoji") else ""),
        text=text,
        tables=tables.attribute_tables(document),
        figures=[attributes_drawing(run.path, document)],
    )


def _sweep(run: Run) -> Section:
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
            *(_said(each.varies.get(name)) for name in comparison.varying),
            *(_said(value) for value in (each.l0, each.explained_variance, each.normalized_mse, each.n_dead)),
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


def _provenance(run: Run, stored: StoredStatistics, store: ActivationStore | None) -> list[tuple[str, str]]:
    s = stored.summary
    lines = [
        ("Run", str(run.path.absolute())),
        ("Weights of the SAE (sha256)", str(s["sae_sha256"])),
        ("Statistics", f"split {s['split']}, {s['n_rows']:,} rows, {s['n_invalid_rows']:,} unreadable, k = {s['k']}"),
        ("Encoded store", f"{s['store']} (fingerprint {s['store_fingerprint']})"),
        ("Site", str(run.known_site or "unknown")),
    ]
    if run.has_store:
        p = run.provenance
        lines += [
            ("Trained on", f"{run.store_path} (fingerprint {run.store_fingerprint})"),
            ("Tower", f"{p['model']}, {p['pretrained']}; weights (sha256) {p['weights_sha256']}"),
            ("Images", f"{p['n_images']:,} of {p['image_source']}; keys (sha256) {p['keys_sha256']}"),
            ("Preprocessing", json.dumps(p["preprocessing"])),
            ("Arithmetic", f"{p['precision']}, stored as {p['dtype']}"),
            ("Row order", f"{p['row_order']}, seed {p['seed']}"),
            ("Packages at harvest", _said(p["packages"])),
        ]
    if store is not None:
        lines.append(("Unreadable images", f"{len(store.unreadable):,}"))
    versions = run.config.get("versions") or run.config.get("packages")
    if versions:
        lines.append(("Packages at training", _said(versions)))
    return [*lines, ("Report", f"thresher {__version__}")]


def _store(run: Run) -> ActivationStore | None:
    """The run's store, where it is still there."""
    if not run.has_store:
        return None
    try:
        store = open_store(run.store_path, n_parts=run.n_store_parts)
    except (StoreError, OSError):
        return None
    return store if store.fingerprint == run.store_fingerprint else None


def _document(run_path: Path, name: str) -> dict[str, Any] | None:
    """A JSON document of the run; None where there is none."""
    path = run_path / name
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedStoreError(
            f"{path} is damaged ({error}): run the command that made it with --overwrite."
        ) from error
    if not isinstance(document, dict) or not str(document.get("format", "")).startswith("thresher-"):
        raise DamagedStoreError(f"{path} is not what thresher writes: run the command that made it with --overwrite.")
    return document


def _stats(run: Run, stored: StoredStatistics) -> str:
    """The command that made the statistics."""
    split = stored.summary["split"]
    return f"thresher stats {_word(run.path)}" + ("" if split == "all" else f" --split {split}")


def _given(options: Mapping[str, Any], *names: str) -> str:
    """Those options of an evaluation that are not its defaults, as a command line has them."""
    from .evaluate_options import EvaluateOptions

    default, words = EvaluateOptions(), ""
    for name in names:
        value = options.get(name)
        if value is not None and value != getattr(default, name):
            words += f" --{name.replace('_', '-')}" + ("" if value is True else f" {_word(str(value))}")
    return words


def _said(value: Any) -> str:
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
