"""The sections of a report on pictures of features: their checks, and whether picture, top images and name agree."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..store.files import write_atomically
from ..store.reader import ActivationStore
from ..train.run_dir import Run
from .naming.names_file import read_names
from .report_figures import _written
from .report_page import Figure, Grid, NumberTable, Section
from .report_sections import _word
from .report_text import bracket, percent
from .stored_statistics import StoredStatistics
from .visualising.agreement import ARRAYS
from .visualising.figures import agreement_figure, checks_figure
from .visualising.sheet import N_FEATURES, pictures_sheet
from .visualising.visualisations_file import Visualisation, read_checks, read_nulls, read_visualisations
from .whole_file import NO_SENSE

_Z95 = 1.96
_SEED = 0  # of the pictures that are shown, where there are more than a sheet holds
_COLUMNS = {
    "activation_ratio": "activation / largest real",
    "rank": "rank",
    "retention_jpeg": "kept by JPEG",
    "retention_crop": "kept by crops",
    "transfer_percentile": "transfer",
}
"""Of which a report tells medians; visualisations.tsv has all."""


def pictures_section(run: Run, stored: StoredStatistics, store: ActivationStore | None) -> Section:
    """The pictures with their verdicts, and what they are held against."""
    common: dict[str, Any] = {"id": "pictures", "title": "Pictures of features"}
    lines, problem = read_visualisations(run.path, run.d_sae)
    command = f"thresher visualise {_word(run.path)}"
    if not lines:
        why = f" {problem}" if problem else ""
        return Section(**common, absent=f"No pictures yet: `{command} --features top:16` makes some.{why}")
    document = read_checks(run.path)
    try:
        rules = _said_rules(document)
        tables: list[NumberTable | Grid] = [_kinds_table(document)] if document is not None else []
    except NO_SENSE:
        document, rules, tables = None, _said_rules(None), []
    n_passed = sum(line.is_passed for line in lines.values())
    text = [f"{n_passed:,} of {len(lines):,} pictures passed. {rules}", *([problem] if problem else [])]
    agreed = [line.seed_agreement for line in lines.values() if np.isfinite(line.seed_agreement)]
    if agreed:
        text.append(
            f"Pictures of several seeds of a feature agree: the cosine of their embeddings, less the mean over images, "
            f"has a median of {np.median(agreed):.2f} over {len(agreed):,} features."
        )
    figures = [_checks_drawing(run.path, lines)] if document is not None else []
    return Section(
        **common,
        command=command,
        text=text,
        tables=tables,
        figures=[*figures, *_sheets(run, stored, store, lines)],
    )


def agreement_section(run: Run, stored: StoredStatistics) -> Section:
    """The post's question: how far top images can be trusted."""
    common: dict[str, Any] = {"id": "agreement", "title": "Do picture, top images and name agree?"}
    if not stored.details.has("agreement"):
        return Section(
            **common,
            absent="Not known yet: it takes names and pictures, and `thresher visualise "
            f"{_word(run.path)}` given after `thresher name` computes it. Statistics made again lose it.",
        )
    arrays = {name: stored.details.array(name)[:] for name in ARRAYS}
    known = arrays["agreement"][np.isfinite(arrays["agreement"])]
    text = [
        "Each of the three is a vector in CLIP's space: the optimised picture, the images on which the feature is "
        "largest, its name. The cosine of two of them is held against the same cosine with one taken from another "
        "feature, and becomes a percentile; the agreement is the mean over the three pairs. By chance it is 50. Names "
        "and pictures are made to fit the feature's images and activations; only picture and name have not seen each "
        "other. All three are seen by the same CLIP: a picture that no person recognises may agree too."
    ]
    if len(known):
        text.append(
            f"Of {len(known):,} features with all three the median agreement is {np.median(known):.3g}; "
            f"{percent(float((known >= 75).mean()))} have 75 or more, {percent(float((known < 50).mean()))} less than "
            "chance."
        )
    else:
        text.append("No feature has all three: the figure shows the pairs that there are.")
    lines, _ = read_visualisations(run.path, run.d_sae)
    is_passed = np.isin(np.arange(run.d_sae), [feature for feature, line in lines.items() if line.is_passed])
    drawn = agreement_figure(arrays, stored.statistics.label_entropy, is_passed)
    medians = ", ".join(
        f"{name.removeprefix('agreement').strip('_').replace('_', ' and ') or 'all three'} "
        f"{np.median(values[np.isfinite(values)]):.0f}"
        for name, values in arrays.items()
        if np.isfinite(values).any()
    )
    figure = _written(
        run.path,
        "agreement",
        drawn,
        f"Histograms of agreement percentiles; medians: {medians or 'none'}.",
        "Agreement of picture, top images and name over all features, pair by pair, beside chance; below, the "
        "agreement of features whose label entropy is defined.",
    )
    return Section(**common, command=f"thresher visualise {_word(run.path)}", text=text, figures=[figure])


def _said_rules(document: Mapping[str, Any] | None) -> str:
    if document is None:
        return "What they are held against is not there: checks.json is gone or damaged."
    height, width = document["input_size"]
    return (
        f"A picture passes when, as decoded from its 8-bit file and seen at {height} x {width} pixels, it fulfils: "
        f"{'; '.join(document['rules'])}. The blur has a deviation of {document['blur_px']:.2g} pixels (1 at 224). "
        "The tower both makes and judges the pictures: one that passes shows what the tower takes for the feature, "
        "which a person may not recognise."
    )


def _kinds_table(document: Mapping[str, Any]) -> Grid:
    return Grid(
        caption="Pictures beside what they are held against: the share that passes, with 95 % interval, and medians.",
        header=["Pictures", "passed [95 %]", *_COLUMNS.values(), "what they are"],
        rows=[
            [
                each["kind"],
                f"{each['n_passed']:,} of {each['n']:,}: {_share(each['n_passed'], each['n'])}",
                *(_median(each["medians"].get(column)) for column in _COLUMNS),
                each["words"],
            ]
            for each in document["kinds"]
        ],
        ends_in_words=True,
    )


def _median(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _share(n_passed: int, n: int) -> str:
    """With Wilson's score interval (1927)."""
    share, z2 = n_passed / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * (share * (1 - share) / n + z2 / (4 * n * n)) ** 0.5 / (1 + z2 / n)
    return f"{percent(share)} {bracket((max(0.0, centre - half), min(1.0, centre + half)), percent=True)}"


def _checks_drawing(run_path: Path, lines: Mapping[int, Visualisation]) -> Figure:
    numbers = {"pictures": [vars(line.checks) for line in lines.values()], **read_nulls(run_path)}
    order = ("pictures", "top images", "raw pixels", "other features", "random phases", "noise")
    kinds = {
        kind: {column: np.array([float(each[column]) for each in numbers[kind]]) for column in numbers[kind][0]}
        for kind in order
        if numbers.get(kind)
    }
    return _written(
        run_path,
        "picture_checks",
        checks_figure(kinds),
        f"Ranges of four checks for {', '.join(kinds)}, with the bound of each rule as a dashed line.",
        "What the checks give for pictures made for their feature, for its largest real image, and for pictures that "
        "were not made for it: median, quartiles, 5th to 95th percentile. Dashed: the rules.",
    )


def _sheets(
    run: Run, stored: StoredStatistics, store: ActivationStore | None, lines: Mapping[int, Visualisation]
) -> list[Figure]:
    """Contact sheets of passed and of failed pictures, drawn at random where there are many."""
    names, _ = read_names(run.path, run.d_sae)
    if store is not None and store.fingerprint != stored.summary["store_fingerprint"]:
        store = None  # top images are rows of another store, which `encode --store` took
    agreement = stored.details.array("agreement")[:] if stored.details.has("agreement") else None
    figures = []
    for verdict, words in (("passed", "passed all checks"), ("failed", "failed a check")):
        of_verdict = [line for line in lines.values() if line.verdict == verdict]
        if not of_verdict:
            continue
        shown: Sequence[Visualisation] = of_verdict
        if len(of_verdict) > N_FEATURES:
            chosen = np.random.default_rng(_SEED).choice(len(of_verdict), N_FEATURES, replace=False)
            shown = [of_verdict[place] for place in np.sort(chosen)]
        which = f"All {len(shown):,}" if len(shown) == len(of_verdict) else f"{len(shown):,} of the {len(of_verdict):,}"
        caption = f"{which} pictures that {words}, each beside its feature's top images."
        path = run.path / "figures" / f"sheet_pictures_{verdict}.png"
        write_atomically(
            path,
            pictures_sheet(run.path, shown, names, agreement, store, stored.statistics.top_row, caption),
        )
        figures.append(Figure(path=path, alt="Contact sheet. " + caption, caption=caption))
    return figures
