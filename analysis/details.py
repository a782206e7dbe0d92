"""What `stats.zarr` holds beyond one number a feature: samples, labels, partners, neighbours, chance levels."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..progress import Reporter, format_bytes
from ..train.l0 import L0Summary
from .clusters import UldSplit
from .cofiring import MIN_SUPPORT, CofiringRows, Partners
from .columns import Column, write_array
from .entropy_null import entropy_null
from .features import FeatureActivations
from .firings import Firings, FiringsSpec
from .nearest import nearest_features
from .options import StatsOptions
from .samples import SAMPLE_GROUPS
from .scheduler import Compute
from .statistics import FeatureStatistics
from .stored_firings import StoredFirings

if TYPE_CHECKING:
    from ..train.models import SparseAutoencoder

_PAIR_BYTES = 4 + 4 + 8  # label, count and sum of a feature's label
NEEDS_FIRINGS = ("samples", "labels", "cofiring", "monosemanticity", "l0_without_uld")
"""What needs every firing."""

Array = NDArray[Any]


class AllFirings(Protocol):
    """Where every firing is known: stored activations, or rows that were encoded once more."""

    def l0_of(self, is_counted: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many rows have exactly i of the features marked."""

    def row(self, row: int) -> tuple[Array, NDArray[np.float32]]:
        """Features of the row with the largest L0, and their activations."""

    def firings(self, spec: FiringsSpec) -> Iterable[Firings]:
        """Samples and labels, a range of features at a time, in order."""

    def cofiring_rows(self) -> CofiringRows:
        """The rows that partners are counted on."""

    def partners(self, rows: CofiringRows) -> Iterable[Partners]:
        """Best partners, a range of features at a time, in order."""

    def monosemanticity(self, embeddings_path: str) -> NDArray[np.float32]:
        """`(d_sae,)`: scores by these embeddings."""


@dataclass(frozen=True, kw_only=True)
class DetailsOf:
    """What details are made of."""

    statistics: FeatureStatistics
    uld: UldSplit
    sae: "SparseAutoencoder | None" = None
    """None where only activations are known."""
    features: FeatureActivations | None = None
    """None where the activations are not stored by feature."""
    firings: AllFirings | None = None
    """Where every firing is known, other than from `features`."""
    no_features_because: str = "the activations are not stored by feature"
    """What the record says then."""


def details_bytes(d_sae: int, options: StatsOptions, nnz: int = 0) -> int:
    """Bytes that the details take on disk at most.

    Parameters
    ----------
    nnz
        Stored activations; 0 where they are not stored by feature.
    """
    each = 3 * 4 + 2 * options.nearest * 8
    if nnz and options.samples:
        each += options.samples * len(SAMPLE_GROUPS) * 16 + 8 + 8 + 4 + 4
    if nnz and options.cofiring:
        each += options.cofiring * 16 + 8
    if options.embeddings is not None:
        each += 4
    return d_sae * each + (nnz * _PAIR_BYTES if options.samples else 0)


def write_details(
    group: Any, of: DetailsOf, options: StatsOptions, *, compute: Compute | None, reporter: Reporter
) -> dict[str, Any]:
    """Compute the details into an open `stats.zarr` and give what `stats.json` says of them.

    `details` says with which settings each was computed, `absent` why another was not.

    Parameters
    ----------
    compute
        Where; None where there are no features.
    """
    details: dict[str, Any] = {}
    absent: dict[str, str] = {}
    record: dict[str, Any] = {"details": details, "absent": absent}
    _null(group, of, options, details, absent)
    _nearest(group, of, options, details, absent, reporter)
    firings = of.firings
    if of.features is not None and compute is not None:
        firings = StoredFirings(of.features, of.statistics.units, options, compute=compute, reporter=reporter)
    if firings is None:
        record |= {"l0_without_uld": None, "max_l0_row_uld": None}
        absent |= dict.fromkeys(NEEDS_FIRINGS, of.no_features_because)
        return record
    record |= _without_uld(group, firings, of, absent)
    if options.samples:
        spec = FiringsSpec(
            split=options.split, samples=options.samples, seed=options.seed, min_labelled=options.min_labelled
        )
        found = firings.firings(spec)
        details["samples"], details["labels"] = _write_firings(group, of.statistics.d_sae, spec, found)
    else:
        absent |= dict.fromkeys(("samples", "labels"), "left out by --samples 0")
    if options.cofiring:
        details["cofiring"] = _cofiring(group, firings, options, reporter)
    else:
        absent["cofiring"] = "left out by --cofiring 0"
    if options.embeddings:
        scores = firings.monosemanticity(options.embeddings)
        write_array(group, "monosemanticity", scores)
        defined = scores[~np.isnan(scores)]
        details["monosemanticity"] = {
            "embeddings": options.embeddings,
            "n_undefined": int(np.isnan(scores).sum()),
            "median": float(np.median(defined)) if len(defined) else None,
        }
    else:
        absent["monosemanticity"] = "no image embeddings: run `thresher embed` first, or give --embeddings FILE"
    return record


def _null(group: Any, of: DetailsOf, options: StatsOptions, details: dict[str, Any], absent: dict[str, str]) -> None:
    s = of.statistics
    if not options.null_draws or not len(s.label_rows):
        absent["null"] = "no row has a label" if options.null_draws else "left out by --null-draws 0"
        return
    null = entropy_null(
        s.top_value, s.top_label, s.label_entropy, s.label_rows, n_draws=options.null_draws, seed=options.seed
    )
    assert null is not None
    for name in ("mean", "sd", "p"):
        write_array(group, f"null/{name}", getattr(null, name))
    group["null"].attrs["n_draws"] = null.n_draws
    least = 1 / (1 + null.n_draws)
    details["null"] = {
        "n_draws": null.n_draws,
        "seed": options.seed,
        "least_p": least,
        "n_at_least_p": int((null.p <= least * (1 + 1e-6)).sum()),
    }


def _nearest(
    group: Any,
    of: DetailsOf,
    options: StatsOptions,
    details: dict[str, Any],
    absent: dict[str, str],
    reporter: Reporter,
) -> None:
    if of.sae is None or not options.nearest:
        absent["nearest"] = "left out by --nearest 0" if of.sae is not None else "there is no SAE"
        return
    from ..devices import choose_device

    device = choose_device(options.device)
    with reporter.task("nearest features", 2 * of.sae.d_sae, "features") as task:
        for name, directions in (("decoder", of.sae.W_dec), ("encoder", of.sae.W_enc.T)):
            feature, cosine = nearest_features(directions.to(device), options.nearest, task)
            write_array(group, f"nearest/{name}_feature", feature)
            write_array(group, f"nearest/{name}_cosine", cosine)
    details["nearest"] = {"n": options.nearest}


def _without_uld(group: Any, firings: AllFirings, of: DetailsOf, absent: dict[str, str]) -> dict[str, Any]:
    """L0 of the features outside the cluster, and how much of the row with the largest L0 is of the cluster."""
    if of.uld.threshold is None:
        absent["l0_without_uld"] = "there is no ULD cluster"
        return {"l0_without_uld": None, "max_l0_row_uld": None}
    counts = firings.l0_of(~of.uld.is_uld)
    write_array(group, "l0/without_uld", counts)
    row = of.statistics.max_l0_row
    index, value = firings.row(row)
    is_uld = of.uld.is_uld[index]
    mass = value.astype(np.float64)
    return {
        "l0_without_uld": asdict(L0Summary.of_counts(counts)),
        "max_l0_row_uld": {
            "row": row,
            "l0": len(index),
            "n_uld": int(is_uld.sum()),
            "share_of_firings": float(is_uld.mean()) if len(index) else None,
            "share_of_mass": float(mass[is_uld].sum() / mass.sum()) if len(index) else None,
        },
    }


def _write_firings(group: Any, d_sae: int, spec: FiringsSpec, found: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    shape = (d_sae, len(SAMPLE_GROUPS), spec.samples)
    row, value, label = np.full(shape, -1, np.int64), np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
    entropy, effective_n = np.full(d_sae, np.nan, np.float32), np.full(d_sae, np.nan, np.float32)
    n_labelled, indptr = np.zeros(d_sae, np.uint64), np.zeros(d_sae + 1, np.uint64)
    # pairs of feature and label may be many: they are written as they come
    columns = {
        name: Column(group, f"labels/{name}", dtype, chunk=1 << 16)
        for name, dtype in (("label", np.int32), ("count", np.uint32), ("sum", np.float64))
    }
    n_pairs = 0
    part: Firings
    for part in found:
        some = slice(part.first, part.first + len(part.sample_row))
        row[some], value[some], label[some] = part.sample_row, part.sample_value, part.sample_label
        entropy[some], effective_n[some] = part.labels.entropy, part.labels.effective_n
        n_labelled[some] = part.labels.n_labelled
        indptr[some.start + 1 : some.stop + 1] = n_pairs + part.labels.indptr[1:]
        n_pairs += len(part.labels.label)
        for name, column in columns.items():
            column.append(getattr(part.labels, name))
    for column in columns.values():
        column.close()
    arrays: dict[str, Array] = {
        "samples/row": row,
        "samples/value": value,
        "samples/label": label,
        "labels/indptr": indptr,
        "labels/n_labelled": n_labelled,
        "labels/entropy": entropy,
        "labels/effective_n": effective_n,
    }
    for name, values in arrays.items():
        write_array(group, name, values)
    group["samples"].attrs["groups"] = list(SAMPLE_GROUPS)
    return {"n": spec.samples, "groups": list(SAMPLE_GROUPS), "seed": spec.seed}, {"n_pairs": n_pairs}


def _cofiring(group: Any, firings: AllFirings, options: StatsOptions, reporter: Reporter) -> dict[str, Any]:
    rows = firings.cofiring_rows()
    reporter.say(
        f"co-firing is counted on {rows.n_rows:,} rows; each process holds "
        f"{format_bytes(4 * int(rows.n_active.sum()))} of them"
    )
    parts = list(firings.partners(rows))
    for name in ("feature", "jaccard", "pmi", "n_both"):
        write_array(group, f"cofiring/{name}", np.concatenate([getattr(part, name) for part in parts]))
    write_array(group, "cofiring/n_active", rows.n_active.astype(np.uint64))
    return {"n": options.cofiring, "n_rows": rows.n_rows, "min_support": MIN_SUPPORT}
