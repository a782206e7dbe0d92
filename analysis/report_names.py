"""The section of a report on names: the share of named features, the best and worst, how often names are right."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..train.run_dir import Run
from .naming.names_file import NAMED, UNNAMED, UNTESTED, Name, read_name_lines
from .report_page import Grid, NumberTable, Section
from .report_sections import _word
from .report_text import bracket, digits, percent
from .whole_file import NO_SENSE, read_json

SHOWN = 10
"""Best names, and worst."""
_CALIBRATION = ("naming", "calibration.json")
_CALIBRATION_FORMAT = "thresher-naming-calibration"


def names_section(run: Run) -> Section:
    """What the features are called, and how well that fits."""
    common: dict[str, Any] = {"id": "names", "title": "Names"}
    lines, problem = read_name_lines(run.path, run.d_sae)
    command = f"thresher name {_word(run.path)}"
    if not lines:
        why = f" {problem}" if problem else ""
        return Section(**common, absent=f"No names yet: `{command}` finds and scores them.{why}")
    n = {status: sum(each.status == status for each in lines.values()) for status in (NAMED, UNNAMED, UNTESTED)}
    text = [
        f"{n[NAMED]:,} of {len(lines):,} features are named ({percent(n[NAMED] / len(lines))}); of {n[UNNAMED]:,} no "
        f"phrase passed its tests, and {n[UNTESTED]:,} fire on too few images to be tested, or on all. A name is "
        "scored on images that did not find it: the score is the mean of AUROC and of the ablation percentile, 0 to 1."
    ]
    scored = sorted(
        ((feature, each) for feature, each in lines.items() if each.status == NAMED and each.score is not None),
        key=lambda found: (-_score(found[1]), found[0]),
    )
    tables: list[NumberTable | Grid] = []
    if len(scored) > 2 * SHOWN:
        tables = [
            _names_table(f"The {SHOWN} names of largest score.", scored[:SHOWN]),
            _names_table(f"The {SHOWN} names of least score.", scored[-SHOWN:]),
        ]
    elif scored:
        tables = [_names_table("Names, by falling score.", scored)]
    calibration = _calibration(run)
    try:
        tables += _calibration_tables(calibration) if calibration is not None else []
    except NO_SENSE:
        calibration = None
    if calibration is None:
        text.append("How often names of a score are right was not measured on this run: it has no calibration.")
    return Section(**common, command=command, text=[*text, *([problem] if problem else [])], tables=tables)


def _score(name: Name) -> float:
    return name.score if name.score is not None else float("-inf")


def _names_table(caption: str, lines: Sequence[tuple[int, Name]]) -> Grid:
    return Grid(
        caption=caption,
        header=["Name (feature)", "score", "AUROC", "ablation z", "sufficiency z", "next best phrases"],
        rows=[
            [
                f"{each.name} ({feature})",
                digits(each.score, 3),
                digits(each.auroc, 3),
                digits(each.ablation_z, 1),
                digits(each.sufficiency_z, 1),
                ", ".join(each.alternatives) or "–",
            ]
            for feature, each in lines
        ],
        ends_in_words=True,
    )


def _calibration(run: Run) -> Mapping[str, Any] | None:
    """The calibration of the run's names; None where there is none, or it is no calibration."""
    try:
        document = read_json(run.path.joinpath(*_CALIBRATION))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and document.get("format") == _CALIBRATION_FORMAT else None


def _calibration_tables(document: Mapping[str, Any]) -> list[NumberTable | Grid]:
    """Right names by method beside chance, and by score."""
    rows = sorted(document["named"], key=lambda row: -(row["right"]["value"] or 0))
    methods = Grid(
        caption=f"Share of right names, on {document['n_features']:,} features that know an attribute of "
        f"{document['source']}; 95 % intervals. Most are right by: {document['winner']['label']}.",
        header=["Names by", "right", "right or nearly", "named", "right of the named"],
        rows=[
            [row["label"], *(_share(row[column]) for column in ("right", "nearly", "named", "right_of_named"))]
            for row in rows
        ]
        + [[each["label"], _share(each["right"]), _share(each["nearly"]), "–", "–"] for each in document["references"]],
    )
    scores = Grid(
        caption=f"How often the names of {document['winner']['label']} are right, by their score; it tells right ones "
        f"from wrong ones with AUROC {digits(document['score_auroc'], 2)}.",
        header=["Score at least", "features", "right", "right or nearly"],
        rows=[
            [f"{each['at_least']:g}", f"{each['right']['n']:,}", _share(each["right"]), _share(each["nearly"])]
            for each in document["reliability"]
        ],
    )
    return [methods, scores]


def _share(found: Mapping[str, Any]) -> str:
    """A share with its interval; a dash where it is of none."""
    value = found["value"]
    if value is None or not np.isfinite(value):
        return "–"
    return f"{percent(value)} {bracket((found['low'], found['high']), percent=True)}"
