"""Everything that is known of a run as one HTML page: `report RUN`."""

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._version import __version__
from ..progress import Reporter
from ..store.errors import DamagedStoreError, StoreError
from ..store.files import FolderLock, write_atomically
from ..store.reader import ActivationStore, open_store
from ..train.run_dir import Run, open_run
from . import report_sections as parts
from .features import FEATURES_ZARR, open_features
from .folders import refuse_existing
from .post import differences
from .report_figures import draw_statistics
from .report_names import names_section
from .report_numbers import glance
from .report_page import Page, Section, render
from .report_pictures import agreement_section, pictures_section
from .report_sections import said
from .report_text import Beside
from .stored_statistics import StoredStatistics, are_of, open_statistics

REPORT_HTML = "report.html"


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
    if (run_path / FEATURES_ZARR).exists() and not are_of(stored, open_features(run_path).info):
        reporter.warn(
            f"{run_path} was encoded again, on other rows or with another store, since its statistics were made: "
            "`thresher stats --overwrite` makes those of the features that are there now"
        )
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
            tables=[glance(stored, evaluation, alignment, post)],
        ),
        parts.training_section(run, drawn),
        parts.reconstruction_section(run, stored, drawn, post),
        parts.evaluation_section(run, evaluation, post),
        parts.features_section(run, stored, drawn),
        parts.cluster_section(run, stored, post),
        parts.examples_section(run, stored),
        names_section(run),
        pictures_section(run, stored, store),
        agreement_section(run, stored),
        parts.alignment_section(run, alignment, post),
        parts.classes_section(run),
        parts.attributes_section(run, attributes),
        parts.sweep_section(run),
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
            ("Packages at harvest", said(p["packages"])),
        ]
    if store is not None:
        lines.append(("Unreadable images", f"{len(store.unreadable):,}"))
    versions = run.config.get("versions") or run.config.get("packages")
    if versions:
        lines.append(("Packages at training", said(versions)))
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
