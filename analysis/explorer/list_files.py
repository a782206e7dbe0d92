"""A list of features as a file to keep: every column, tags and notes, as CSV or JSON."""

import csv
import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .annotations import Annotation
from .listing import Selection

if TYPE_CHECKING:
    from .runs import ExploredRun

VERDICT_WORDS = {1: "passed", 0: "failed", -1: ""}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes a cell for a formula by."""


def columns(run: "ExploredRun", selection: Selection) -> dict[str, list[Any]]:
    """The columns of a list by name, a value for each feature; None where a number is undefined."""
    ids, listing, statistics = selection.ids, run.listing, run.stored.statistics
    names, annotations, nothing = run.names.now(), run.annotations.features, Annotation()
    lines = [names.lines.get(feature) for feature in ids.tolist()]
    said = [annotations.get(feature, nothing) for feature in ids.tolist()]
    found: dict[str, list[Any]] = {
        "feature": ids.tolist(),
        "name": [names.of(feature) for feature in ids.tolist()],
        "own_name": [each.name for each in said],
        "automatic_name": [names.automatic(feature) for feature in ids.tolist()],
        "name_status": [each.status if each else "" for each in lines],
        "name_score": [each.score if each else None for each in lines],
        "name_method": [each.method if each else "" for each in lines],
        "top_label": [None if label < 0 else label for label in listing.top_label[ids].tolist()],
        "top_label_name": [run.label_name(label) if label >= 0 else "" for label in listing.top_label[ids].tolist()],
        "top_label_share": _numbers(listing.top_share[ids]),
        "n_active": statistics.n_active[ids].tolist(),
        "density": _numbers(run.density[ids]),
        "mean_top": _numbers(statistics.mean_top[ids]),
        "n_pos": statistics.n_pos[ids].tolist(),
        "max": _numbers(statistics.max[ids]),
        "label_entropy": _numbers(statistics.label_entropy[ids]),
        "n_labelled": statistics.n_labelled[ids].tolist(),
        "is_uld": run.is_uld[ids].tolist(),
    }
    if listing.monosemanticity is not None:
        found["monosemanticity"] = _numbers(listing.monosemanticity[ids])
    if listing.cosine is not None:
        found["max_neuron_cosine"] = _numbers(listing.cosine[ids])
    if listing.agreement is not None:
        found["agreement"] = _numbers(run.array("agreement")[ids])
    if listing.verdicts is not None:
        found["picture_verdict"] = [VERDICT_WORDS[each] for each in np.nan_to_num(listing.verdicts[ids], nan=-1)]
    if selection.scores:
        found["phrase_score"] = [selection.scores.get(feature) for feature in ids.tolist()]
    found["sensitive"] = [each.sensitive for each in said]
    found["tags"] = [list(each.tags) for each in said]
    found["note"] = [each.note for each in said]
    return found


def as_csv(run: "ExploredRun", selection: Selection) -> bytes:
    """UTF-8, a header and a line a feature; tags parted by commas. No cell is taken for a formula by a spreadsheet."""
    shown: list[list[Any]] = []
    table = columns(run, selection)
    for values in table.values():
        shown.append([_cell(value) for value in values])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*shown, strict=True))
    return text.getvalue().encode("utf-8", "replace")


def as_json(run: "ExploredRun", selection: Selection, values: dict[str, str]) -> bytes:
    """The same with what run, statistics and filters it is of."""
    table = columns(run, selection)
    features = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    of = {name: run.summary[name] for name in ("sae_sha256", "store_fingerprint", "site", "split", "n_rows", "d_sae")}
    document = {"run": run.name, **of, "query": values, "n": len(features), "features": features}
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"


def _numbers(values: Any) -> list[float | None]:
    """As short as they are exact; None for NaN."""
    as_is: Callable[[Any], Any] = float if values.dtype == np.float64 else lambda each: float(str(each))
    return [as_is(each) if np.isfinite(each) else None for each in values]


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, list):
        value = ", ".join(value)
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return "" if value is None else value
