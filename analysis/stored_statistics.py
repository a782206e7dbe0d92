"""The stored statistics of a run: what `stats.zarr` and `stats.json` hold, written and read.

`stats.zarr`, one zarr v3 group; arrays have length d_sae unless another shape is given:

    n_active       uint64    rows on which the feature is > 0
    sum            float64   of its values
    max            float32   0 for a dead feature
    mean_top       float32   mean of the up to k largest positive values, NaN for a dead feature
    n_pos          uint16    how many values that mean is over
    label_entropy  float32   nats, NaN where undefined
    n_labelled     uint16    firing labelled rows among the k: what the entropy is over
    is_uld         bool      in the ultra-low-density cluster
    top_row        int64     (d_sae, k) physical rows of the store, -1 unfilled
    top_value      float32   (d_sae, k) falling, 0 unfilled
    top_label      int32     (d_sae, k) -1 none
    effective_n    float32   effective sample size of the entropy's weights, NaN where none of the k is labelled
    l0/counts      int64     rows with exactly i features > 0
    l0/above_0.1, above_0.5, above_1    the same for features above these
    l0/without_uld           the same for features > 0 outside the ULD cluster, where there is one
    histogram/counts   uint32  (d_sae, 64) values that fall into each bin; uint64 from 2^32 rows on
    histogram/edges    float32 (65,) shared by all features: bin i counts edges[i] <= value < edges[i + 1]
    labels/id, n_rows  int32, int64  labels of the rows counted, ascending, and how many rows have each
    null/mean, sd, p   float32 label entropy under random labels: its mean and deviation, and the share of draws with
                               an entropy as low; NaN where the entropy is undefined
    nearest/decoder_feature, decoder_cosine, encoder_feature, encoder_cosine
                       int32, float32  (d_sae, n) nearest by cosine, falling; -1 and NaN unfilled

Only of a run, not of a dense matrix, and not where an option leaves it out (`absent` in stats.json says why not):

    samples/row, value, label   int64, float32, int32  (d_sae, 5, n) firing rows around the top, 75, 50 and 25 %
                       quantile of the feature's activations and at random; falling; -1, 0, -1 unfilled
    labels/indptr      uint64  (d_sae + 1,): feature j has the pairs indptr[j] to indptr[j + 1] of the next three
    labels/label, count, sum    int32, uint32, float64  (pairs,) labels of all its firing rows, ascending; how many
                       rows, and the sum of its activations there
    labels/n_labelled  uint64  firing labelled rows
    labels/entropy, effective_n  float32  label entropy over all of them, and its effective sample size
    cofiring/feature, jaccard, pmi, n_both  int32, float32, float32, uint32  (d_sae, n) features that fire on the same
                       rows, by falling Jaccard index, with PMI in nats and the rows on which both fire; -1, NaN, NaN, 0
                       unfilled. `details` in stats.json says on how many rows this was counted
    cofiring/n_active  uint64  firings of each feature on those rows
    monosemanticity    float32 NaN where fewer than two firing rows have an embedding

Only where `name` or `visualise` ran after the statistics were made, which go without when they are made again:

    agreement          float32 percentile, 0 to 100, to which a feature's optimised picture, its top images and its name
                       agree (see `visualising/agreement.py`), the mean of three pairs; NaN where one is missing
    agreement_picture_images, agreement_picture_name, agreement_images_name    float32  the pairs
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..store.errors import DamagedStoreError, StoreError
from ..store.files import write_atomically
from ..train.l0 import L0Summary
from .activation_bins import BIN_EDGES
from .clusters import Coherence, UldSplit, summarise_uld
from .columns import write_array
from .features import FeaturesInfo
from .folders import new_folder
from .l0_counts import L0_THRESHOLDS
from .quality import Quality
from .statistics import FeatureStatistics
from .stored_details import StoredDetails

FORMAT_NAME = "thresher-stats"
FORMAT_VERSION = 2
STATS_ZARR, STATS_JSON = "stats.zarr", "stats.json"

_L0_ABOVE = tuple(f"l0/above_{threshold:g}" for threshold in L0_THRESHOLDS)
_MORE = ("histogram/counts", "labels/id", "labels/n_rows")
PER_FEATURE = (
    "n_active",
    "sum",
    "max",
    "mean_top",
    "n_pos",
    "label_entropy",
    "n_labelled",
    "effective_n",
    "top_row",
    "top_value",
    "top_label",
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What statistics are of: the fields of stats.json that say so. None where a dense matrix does not tell."""

    split: str
    matrix: str | None = None
    """Path of the dense matrix, where one was given."""
    store: str | None = None
    store_fingerprint: str | None = None
    site: str | None = None
    """Path of the site in the store; its layer is 0-based."""
    sae_sha256: str | None = None
    d_in: int | None = None


def summarise(
    source: Source,
    statistics: FeatureStatistics,
    split: UldSplit,
    coherence: Coherence | None,
    quality: dict[str, Quality],
) -> dict[str, Any]:
    """The document of stats.json; None stands for NaN.

    Parameters
    ----------
    source
        What was counted.
    statistics, split
        Of its features.
    coherence
        Of the encoder vectors, where there are any.
    quality
        By split; that of `source.split` stands at the top level too.
    """
    uld = summarise_uld(split, statistics.n_active, statistics.sum, statistics.n_rows)
    chosen = quality.get(source.split)
    numbers = [f.name for f in fields(Quality) if f.name != "n_rows"]
    document = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        **asdict(source),
        "n_rows": statistics.n_rows,
        "n_invalid_rows": statistics.n_invalid,
        "n_labelled_rows": statistics.n_labelled_rows,
        "d_sae": statistics.d_sae,
        "k": statistics.k,
        "min_labelled": statistics.min_labelled,
        **{name: getattr(chosen, name) if chosen else None for name in numbers},
        "n_dead": int((~statistics.is_alive).sum()),
        "n_entropy_undefined": int(np.isnan(statistics.label_entropy).sum()),
        "l0": _l0(statistics.l0),
        **{
            name.replace("/", "_"): _l0(L0Summary.of_counts(counts))
            for name, counts in zip(_L0_ABOVE, statistics.l0_counts_above, strict=True)
        },
        "max_l0_row": statistics.max_l0_row,
        "uld": None if uld is None else asdict(uld) | _coherence(coherence),
        "no_uld_because": split.reason,
        "uld_fit": {"bic_gain": split.bic_gain, "dip": split.dip},
        "quality": {name: asdict(q) for name, q in quality.items()},
        "thresher": __version__,
    }
    return _without_nan(document)


def write_statistics(
    folder: Path,
    statistics: FeatureStatistics,
    is_uld: NDArray[np.bool_],
    document: dict[str, Any],
    *,
    overwrite: bool,
    details: Callable[[Any], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write `stats.zarr` and then `stats.json` into a folder, each whole or not at all.

    Parameters
    ----------
    document
        Of stats.json; given back as it is read from there, with what `details` adds.
    details
        Writes further arrays into the open group, and gives what stats.json says of them (`details.write_details`).
    """
    import zarr

    with new_folder(folder / STATS_ZARR, overwrite=overwrite) as temporary:
        group = zarr.open_group(str(temporary), mode="w", zarr_format=3)
        arrays: dict[str, NDArray[Any]] = {name: getattr(statistics, name) for name in PER_FEATURE}
        arrays |= {"is_uld": is_uld, "l0/counts": statistics.l0_counts}
        for name, counts in zip(_L0_ABOVE, statistics.l0_counts_above, strict=True):
            arrays[name] = counts
        arrays |= {"histogram/counts": statistics.histogram, "histogram/edges": BIN_EDGES}
        arrays |= {"labels/id": statistics.label_ids, "labels/n_rows": statistics.label_rows}
        for name, values in arrays.items():
            write_array(group, name, values)
        if details is not None:
            document = document | _without_nan(details(group))
        kept = ("split", "n_rows", "n_invalid_rows", "n_labelled_rows", "d_sae", "k", "min_labelled", "max_l0_row")
        attributes = {name: document[name] for name in kept}
        group.attrs.update({"format": FORMAT_NAME, "format_version": FORMAT_VERSION, **attributes, "complete": True})
    text = json.dumps(document, indent=2, allow_nan=False)
    write_atomically(folder / STATS_JSON, text.encode() + b"\n")
    summary: dict[str, Any] = json.loads(text)
    return summary


@dataclass(frozen=True)
class StoredStatistics:
    """The statistics of a run, read back."""

    path: Path
    """The run directory."""
    summary: dict[str, Any]
    """The document of stats.json."""
    statistics: FeatureStatistics
    is_uld: NDArray[np.bool_]
    """`(d_sae,)`."""
    details: StoredDetails
    """Samples, labels, partners, neighbours and chance levels, read when they are asked for."""


def open_statistics(run_path: str | Path) -> StoredStatistics:
    """Read the statistics of a run.

    Raises
    ------
    StoreError
        When there are none, or they are of another format.
    DamagedStoreError
        When an array or a number of theirs is gone or cannot be read.
    """
    import zarr

    path = Path(run_path)
    try:
        document = json.loads((path / STATS_JSON).read_text())
        group = zarr.open_group(str(path / STATS_ZARR), mode="r")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{path} holds no statistics: run `thresher stats` first.") from error
    except ValueError as error:
        raise StoreError(f"{path / STATS_JSON} cannot be read ({error}): run `thresher stats --overwrite`.") from error
    if not isinstance(document, dict):
        raise DamagedStoreError(f"{path / STATS_JSON} is not what thresher writes: run `thresher stats --overwrite`.")
    for found in (document, group.attrs):
        if found.get("format") != FORMAT_NAME or found.get("format_version") != FORMAT_VERSION:
            raise StoreError(f"{path} holds statistics of another format: run `thresher stats --overwrite`.")
    try:
        return _read_statistics(path, document, group)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise DamagedStoreError(
            f"the statistics of {path} are damaged ({reason}): run `thresher stats --overwrite`."
        ) from error


def _read_statistics(path: Path, document: dict[str, Any], group: Any) -> StoredStatistics:
    arrays: dict[str, Any] = {name: group[name] for name in (*PER_FEATURE, "is_uld", "l0/counts", *_L0_ABOVE, *_MORE)}
    per_feature: dict[str, Any] = {name: arrays[name][:] for name in PER_FEATURE}
    statistics = FeatureStatistics(
        k=document["k"],
        min_labelled=document["min_labelled"],
        n_rows=document["n_rows"],
        n_invalid=document["n_invalid_rows"],
        n_labelled_rows=document["n_labelled_rows"],
        l0_counts=arrays["l0/counts"][:],
        l0_counts_above=np.stack([arrays[name][:] for name in _L0_ABOVE]),
        histogram=arrays["histogram/counts"][:],
        label_ids=arrays["labels/id"][:],
        label_rows=arrays["labels/n_rows"][:],
        max_l0_row=document["max_l0_row"],
        workers=frozenset(),
        **per_feature,
    )
    details = StoredDetails(group, path, document.get("absent", {}))
    return StoredStatistics(path, document, statistics, arrays["is_uld"][:], details)


def are_of(stored: StoredStatistics, info: FeaturesInfo) -> bool:
    """Whether statistics are of these feature activations: of the same SAE, store, site and number of rows."""
    summary = stored.summary
    n_rows = {"train": info.n_train, "heldout": info.n_held_out, "all": info.n_encoded}[summary["split"]]
    return (
        n_rows == summary["n_rows"]
        and info.d_sae == summary["d_sae"]
        and all(summary[name] == getattr(info, name) for name in ("sae_sha256", "store_fingerprint", "site"))
    )


def _l0(summary: L0Summary) -> dict[str, Any]:
    return asdict(summary)


def _coherence(coherence: Coherence | None) -> dict[str, Any]:
    numbers = {
        "coherence": "within",
        "coherence_rest": "rest",
        "coherence_between": "between",
        "coherence_chance_sd": "chance_sd",
        "coherence_chance_p99": "chance_p99",
        "coherence_matched_chance_sd": "matched_chance_sd",
        "coherence_matched_chance_p99": "matched_chance_p99",
    }
    return {name: None if coherence is None else getattr(coherence, field) for name, field in numbers.items()}


def _without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(v) for name, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
