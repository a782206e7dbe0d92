"""What the features know of each class: its own ones, what divides its rows, the classes that it shares some with."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..progress import Reporter
from ..store.errors import StoreError
from ..store.files import FolderLock, write_all_atomically
from ..train.run_dir import open_run
from .class_structure import ClassStructure, class_structures
from .classes_options import ClassesOptions
from .features import FeatureActivations, open_features
from .folders import refuse_existing
from .shared_features import Membership, SharedFeatures, membership, shared_features
from .stored_statistics import StoredStatistics, are_of, open_statistics

CLASSES_TSV, FEATURES_TSV, PAIRS_TSV = "classes.tsv", "class_features.tsv", "class_pairs.tsv"
_PAIRS_AT_ONCE = 1 << 20
_ALL_PAIRS_OF = 50

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Classes:
    """What `classes` found.

    Parameters
    ----------
    names
        By label, where the store is there and has names.
    n_own_features
        Features of label entropy 0.
    structures
        Of the classes with own features, or of the one asked for; those with the most own features first.
    shared
        Pairs of classes, or those of the one asked for.
    """

    run_path: Path
    split: str
    k: int
    names: dict[int, str]
    label: int | None
    n_labels: int
    n_rows: int
    n_own_features: int
    structures: list[ClassStructure]
    shared: list[SharedFeatures]
    n_labelled: NDArray[np.uint64]
    """`(d_sae,)`: labelled rows on which each fires."""
    mean_top: NDArray[np.float32]
    decoder: NDArray[np.float32]
    """`(d_sae, d_out)`, rows of norm 1."""

    def name(self, label: int) -> str:
        """Of a class."""
        return self.names.get(label, f"label {label}")

    def cosine(self, a: int, b: int) -> float:
        """Of two features' decoder directions."""
        return float(self.decoder[a] @ self.decoder[b])

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "split": self.split,
            "k": self.k,
            "n_labels": self.n_labels,
            "n_labelled_rows": self.n_rows,
            "n_own_features": self.n_own_features,
            "classes": [self.of_class(s) for s in self.structures],
            "pairs": [
                {**asdict(pair), "name_a": self.name(pair.a), "name_b": self.name(pair.b)} for pair in self.shared
            ],
        }

    def of_class(self, s: ClassStructure) -> dict[str, Any]:
        """One class, with its features and their overlaps."""
        return {
            "label": s.label,
            "name": self.name(s.label),
            "n_rows": s.n_rows,
            "n_covered": s.n_covered,
            "n_in_parts": s.n_in_parts,
            "effective_parts": s.effective_parts,
            "parts": [{"leader": leader, "n_rows": n} for leader, n in s.parts.items()],
            "features": [
                {
                    **asdict(own),
                    "share_of_class": own.n_class / s.n_rows,
                    "precision": own.n_class / int(self.n_labelled[own.feature]),
                    "mean_top": float(self.mean_top[own.feature]),
                }
                for own in s.features
            ],
            "overlaps": list(overlaps(self, s)),
        }


def overlaps(found: Classes, s: ClassStructure) -> Iterator[dict[str, Any]]:
    """Pairs of own features of a class: rows together, Jaccard, rows together by chance, decoder cosine.

    Those that meet on no row are left out where a class has more than 50 own features.
    """
    both = {(o.a, o.b): o.n_both for o in s.overlaps}
    rows = {f.feature: f.n_class for f in sorted(s.features, key=lambda f: f.feature)}
    pairs = combinations(rows, 2) if len(rows) <= _ALL_PAIRS_OF else sorted(both)
    for a, b in pairs:
        n = both.get((a, b), 0)
        yield {
            "a": a,
            "b": b,
            "n_both": n,
            "expected": rows[a] * rows[b] / s.n_rows,
            "jaccard": n / (rows[a] + rows[b] - n) if n else 0.0,
            "decoder_cosine": found.cosine(a, b),
        }


def classes(
    run_path: Path | str,
    label: str | None = None,
    options: ClassesOptions | None = None,
    reporter: Reporter | None = None,
) -> Classes:
    """What the features of a run know of its classes.

    Of all classes it is also written beside the run, as `classes.tsv`, `class_features.tsv` and `class_pairs.tsv`.

    Parameters
    ----------
    label
        Name or number of one class; all where None.

    Raises
    ------
    ValueError
        When there is no such class, or no row has a label.
    StoreError
        When the run has no feature activations or statistics, they do not fit together, or the files are there.
    """
    options, reporter = options or ClassesOptions(), reporter or Reporter()
    run_path = Path(run_path)
    if label is None:
        for name in (CLASSES_TSV, FEATURES_TSV, PAIRS_TSV):
            refuse_existing(run_path / name, overwrite=options.overwrite)
    open_run(run_path)  # which says so where there is none
    features, stored = open_features(run_path), open_statistics(run_path)
    statistics = stored.statistics
    if not are_of(stored, features.info):
        raise StoreError(f"{run_path} holds statistics of other feature activations: run `thresher stats --overwrite`.")
    if not len(statistics.label_ids):
        raise ValueError(f"no row of {run_path} has a label: classes are those of a harvest of labelled images")
    if len(statistics.label_ids) < 2:
        raise ValueError(f"the rows of {run_path} are all of one class: there is nothing to tell it from")
    names = _names(features, run_path, reporter)
    rows_of = dict(zip(statistics.label_ids.tolist(), statistics.label_rows.tolist(), strict=True))
    chosen = None if label is None else _chosen(label, names, rows_of)
    class_of = np.where(statistics.label_entropy == 0, statistics.top_label.max(axis=1, initial=-1), -1)
    n_own = int((class_of >= 0).sum())
    if chosen is not None:
        class_of = np.where(class_of == chosen, class_of, -1)
    structures = class_structures(
        features, class_of.astype(np.int64), split=stored.summary["split"], rows_of=rows_of, reporter=reporter
    )
    n_labelled, members = _members(stored)
    pairs = shared_features(members, len(rows_of))
    found = Classes(
        run_path=run_path,
        split=stored.summary["split"],
        k=statistics.k,
        names=names,
        label=chosen,
        n_labels=len(rows_of),
        n_rows=statistics.n_labelled_rows,
        n_own_features=n_own,
        structures=sorted(structures, key=lambda s: (-len(s.features), s.label)),
        shared=pairs if chosen is None else [pair for pair in pairs if chosen in (pair.a, pair.b)],
        n_labelled=n_labelled,
        mean_top=statistics.mean_top,
        decoder=_decoder(run_path),
    )
    if chosen is None:
        with closing(FolderLock(run_path)):
            _write(found)
    return found


def _chosen(label: str, names: dict[int, str], rows_of: dict[int, int]) -> int:
    """The label that a name or a number stands for."""
    wanted = label.strip().casefold().replace("_", " ")
    found = [i for i in rows_of if names.get(i, "").casefold().replace("_", " ") == wanted]
    if not found and label.strip().isdecimal() and int(label) in rows_of:
        found = [int(label)]
    if len(found) > 1:
        numbers = ", ".join(str(i) for i in found)
        raise ValueError(f"{len(found)} classes are called {label!r}: give a number, one of {numbers}")
    if not found:
        close = [name for i, name in names.items() if i in rows_of and wanted in name.casefold().replace("_", " ")]
        hint = f" (is {close[0]!r} meant?)" if close and wanted else ""
        raise ValueError(f"no row has the class {label!r}{hint}: the rows have {len(rows_of):,} classes")
    return found[0]


def _names(features: FeatureActivations, run_path: Path, reporter: Reporter) -> dict[int, str]:
    """Names of the classes, where the store that was encoded can be read."""
    from ..store.reader import open_store

    info = features.info
    place = info.store
    try:
        if info.is_training_store:
            place = open_run(run_path).store_path
        store = open_store(place, n_parts=info.n_store_parts)
    except StoreError as error:
        reporter.warn(f"no names of classes: {error}")
        return {}
    if store.fingerprint != info.store_fingerprint:
        reporter.warn(f"no names of classes: {place} is not the store that was encoded (other fingerprint)")
        return {}
    return dict(enumerate(store.label_names or []))


def _members(stored: StoredStatistics) -> tuple[NDArray[np.uint64], Membership]:
    """Labelled firing rows of each feature, and which features are of which classes; read a range at a time."""
    statistics, details = stored.statistics, stored.details
    indptr = details.array("labels/indptr")[:].astype(np.int64)
    n_labelled = details.array("labels/n_labelled")[:]
    parts = []
    start = 0
    while start < statistics.d_sae:
        stop = max(start + 1, int(np.searchsorted(indptr, indptr[start] + _PAIRS_AT_ONCE, side="right")) - 1)
        stop = min(stop, statistics.d_sae)
        rows = slice(int(indptr[start]), int(indptr[stop]))
        feature = np.repeat(np.arange(start, stop), np.diff(indptr[start : stop + 1]))
        if len(feature):
            parts.append(
                membership(
                    feature,
                    details.array("labels/label")[rows].astype(np.int64),
                    details.array("labels/count")[rows].astype(np.int64),
                    n_labelled[feature].astype(np.int64),
                    statistics.label_ids.astype(np.int64),
                    statistics.label_rows.astype(np.int64),
                )
            )
        start = stop
    columns = ("feature", "label", "n")
    empty = [np.zeros(0, np.int64)]
    return n_labelled, Membership(
        *(np.concatenate([*empty, *(getattr(part, name) for part in parts)]) for name in columns)
    )


def _decoder(run_path: Path) -> NDArray[np.float32]:
    from ..train.models import load_sae

    rows: NDArray[np.float32] = load_sae(run_path).W_dec.detach().numpy()
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 0)


def _write(found: Classes) -> None:
    structure = [
        {
            "label": s.label,
            "class": found.name(s.label),
            "n_rows": s.n_rows,
            "n_own_features": len(s.features),
            "share_covered": s.n_covered / s.n_rows,
            "n_parts": len(s.parts),
            "effective_parts": s.effective_parts,
        }
        for s in found.structures
    ]
    own = [
        {"label": s.label, "class": found.name(s.label), **record}
        for s in found.structures
        for record in found.of_class(s)["features"]
    ]
    pairs = [
        {
            "class_a": found.name(p.a),
            "class_b": found.name(p.b),
            **{name: value for name, value in asdict(p).items() if name != "features"},
            "features": " ".join(str(f) for f in p.features),
        }
        for p in found.shared
    ]
    write_all_atomically(
        {
            found.run_path / name: [_table(records)]
            for name, records in ((CLASSES_TSV, structure), (FEATURES_TSV, own), (PAIRS_TSV, pairs))
        }
    )


def _table(records: list[dict[str, Any]]) -> bytes:
    if not records:
        return b""
    lines = ["\t".join(records[0]), *("\t".join(_cell(value) for value in r.values()) for r in records)]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())
