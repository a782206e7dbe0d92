"""A run as the explorer shows it: columns in memory, arrays opened once, pictures and tower on demand."""

import atexit
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...store.errors import StoreError
from ...store.format import Site
from ...store.reader import ActivationStore
from ...train.run_dir import Run, open_run
from ..features import FEATURES_ZARR, FeatureActivations, open_features
from ..naming.names_file import read_name_lines
from ..stored_statistics import StoredStatistics, are_of, open_statistics
from .annotations import Annotations
from .class_counts import ClassCounts
from .class_tables import ClassTables, read_class_tables
from .encoded_store import open_encoded_store
from .feature_names import FeatureNames
from .label_index import LabelIndex
from .listing import Listing
from .page import NotHere, PageError, Unavailable

if TYPE_CHECKING:
    from ...harvest.images import ImageSet
    from .tower import RunTower

_IN_MEMORY_BYTES = 512 << 20
"""Arrays up to this are held in memory; of larger ones rows are read as they are asked for."""
_THUMBNAILS_KEPT_BYTES = 64 << 20
_LONGEST_OPENING_S = 3.0
"""So long a visitor waits while another's question opens the source of the images; then thumbnails are shown."""
_ROWS_IN_MEMORY = 1 << 24
"""Rows up to which numbers of rows are held in memory: 17 bytes a row for all of them."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Firing:
    """One feature on one row."""

    row: int
    value: float
    label: int
    """-1 for none."""


class ExploredRun:
    """One run, opened once for all visitors; every method may be called from several threads.

    Parameters
    ----------
    path
        The run directory, after `stats`.
    name
        What the run is called in addresses and on pages; unique among the runs explored together.

    Raises
    ------
    StoreError
        When the run has no statistics, or they are damaged.
    """

    def __init__(self, path: str | Path, name: str | None = None) -> None:
        self.path = Path(path)
        self.name = name or self.path.absolute().name
        self.device = "auto"
        """Where its tower runs: cuda, mps, cpu or auto."""
        self.run: Run = open_run(self.path)
        self.stored: StoredStatistics = open_statistics(self.path)
        self.features: FeatureActivations | None = None
        self.notes: list[str] = []
        """What a visitor must know of this run's data, such as statistics of an earlier encoding."""
        if (self.path / FEATURES_ZARR).exists():
            features = open_features(self.path)
            if are_of(self.stored, features.info):
                self.features = features
            else:
                self.notes.append(
                    "This run was encoded again since its statistics were made: pages of images are left out until "
                    "`thresher stats --overwrite` has been run."
                )
        self.store: ActivationStore | None = self._open_store()
        self._lock, self._opening = threading.Lock(), threading.Lock()
        self._loading: dict[str, threading.Lock] = {}
        self._arrays: dict[str, Array] = {}
        self._row_columns: dict[str, Array] = {}
        self._parts: dict[str, bool] = {}
        self._thumbnails: OrderedDict[int, bytes | None] = OrderedDict()
        self._thumbnail_bytes = 0

    # What it is of

    @property
    def summary(self) -> dict[str, Any]:
        """The document of stats.json."""
        return self.stored.summary

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.stored.statistics.d_sae

    @property
    def site(self) -> Site | None:
        """Where its rows were read; its layer is 0-based."""
        return self.run.known_site

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Of the training store, as JSON; empty where the run was imported without one."""
        return self.run.provenance if self.run.has_store else {}

    @cached_property
    def facts(self) -> list[tuple[str, str]]:
        """What every page says of the run: SAE, tower, layer, token, images, rows, statistics."""
        s, site, of = self.summary, self.site, self.provenance
        facts = [("SAE", f"{self.name} · {str(s['sae_sha256'] or 'unknown')[:12]}")]
        if of:
            facts.append(("Tower", f"{of['model']} ({of['pretrained']})"))
        if site is not None:
            facts.append(("Site", f"layer {site.layer} (0-based) · {site.site} · {site.token}"))
        if of:
            facts.append(("Images", f"{of['n_images']:,} of {of['image_source']}"))
        facts.append(("Statistics", f"{s['n_rows']:,} rows · split {s['split']}"))
        return facts

    def document(self, name: str) -> dict[str, Any] | None:
        """A JSON document of the run directory, such as `evaluate.json`; None where there is none."""
        try:
            found = json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise Unavailable(f"{name} is damaged ({error}): run the command that made it with --overwrite.") from error
        return found if isinstance(found, dict) else None

    # Columns and arrays

    @cached_property
    def density(self) -> NDArray[np.float64]:
        """`(d_sae,)` share of rows on which each feature is > 0."""
        return self.stored.statistics.n_active / max(1, self.summary["n_rows"])

    @cached_property
    def is_dead(self) -> NDArray[np.bool_]:
        """`(d_sae,)` whether a feature fired on no row."""
        return self.stored.statistics.n_active == 0

    @cached_property
    def points(self) -> NDArray[np.float32]:
        """`(3, d_sae)`: log10 density, log10 mean top activation (NaN where dead), label entropy (NaN where undefined).

        What the overview draws and lists are filtered by: the same numbers, so that both count the same features.
        """
        of = self.stored.statistics
        with np.errstate(divide="ignore"):
            density = np.where(self.is_dead, np.nan, np.log10(self.density))
            mean_top = np.where(self.is_dead, np.nan, np.log10(of.mean_top.astype(np.float64)))
        return np.stack([density, mean_top, of.label_entropy]).astype(np.float32)

    @property
    def is_uld(self) -> NDArray[np.bool_]:
        """`(d_sae,)` whether a feature is in the ultra-low-density cluster."""
        return self.stored.is_uld

    @cached_property
    def shown(self) -> NDArray[np.int64]:
        """Features that are browsed by default: alive and outside the ULD cluster, ascending."""
        return np.flatnonzero(~self.is_dead & ~self.is_uld)

    def has(self, name: str) -> bool:
        """Whether the statistics hold `samples`, `labels`, `cofiring`, `nearest`, `null`, `monosemanticity`, ..."""
        found = self._parts.get(name)
        if found is None:  # zarr looks for it on the disk: a third of a millisecond
            try:
                found = self._parts[name] = self.stored.details.has(name)
            except Exception as error:
                raise _damaged(name, error) from error
        return found

    def array(self, name: str) -> Array:
        """A whole array of stats.zarr by its name there, such as `samples/row`: read once, then in memory.

        Raises
        ------
        Unavailable
            When the statistics do not hold it, or are damaged; the line says why.
        """
        found = self._arrays.get(name)
        if found is not None:
            return found
        with self._lock:
            lock = self._loading.setdefault(name, threading.Lock())
        with lock:
            if name not in self._arrays:
                try:
                    stored = self.stored.details.array(name)
                    nbytes = int(np.prod(stored.shape)) * stored.dtype.itemsize
                    self._arrays[name] = stored[:] if nbytes <= _IN_MEMORY_BYTES else stored
                except StoreError as error:
                    raise Unavailable(str(error)) from error
                except Exception as error:
                    raise _damaged(name, error) from error
            return self._arrays[name]

    def preload(self) -> None:
        """Read the arrays that pages need into memory; pages that are asked for meanwhile wait only for their own."""
        try:
            self._preload()
        except (PageError, StoreError, OSError) as error:
            self.notes.append(" ".join(str(error).split()))  # pages that need what is damaged say so too

    def _preload(self) -> None:
        self.names  # noqa: B018 (read once)
        for part, arrays in _PRELOADED.items():
            if self.has(part):
                for name in arrays:
                    self.array(name)
        if self.features is not None and self.features.n_rows <= _ROWS_IN_MEMORY:
            self.row_starts  # noqa: B018 (read once)
        self.listing.sorts  # noqa: B018 (made once)
        self.class_counts, self.class_tables  # noqa: B018
        if self.has("labels"):
            self.label_index  # noqa: B018

    @cached_property
    def names(self) -> FeatureNames:
        """What features are called; names.tsv is read once."""
        lines, problem = read_name_lines(self.path, self.d_sae)
        self.notes += [problem] if problem else []
        return FeatureNames(lines, self.annotations, self.d_sae)

    @cached_property
    def listing(self) -> Listing:
        """The columns that lists of features are filtered and sorted by."""
        return Listing(self)

    @cached_property
    def class_counts(self) -> ClassCounts:
        """What is counted of each class."""
        return ClassCounts(self)

    @cached_property
    def label_index(self) -> LabelIndex:
        """Features by label; `Unavailable` where the statistics hold no label table."""
        return LabelIndex(self)

    @cached_property
    def class_tables(self) -> ClassTables:
        """What `thresher classes` wrote."""
        return read_class_tables(self.path)

    @cached_property
    def annotations(self) -> Annotations:
        """What people said of features: tags, notes, sensitive marks."""
        return Annotations(self.path, self.summary["sae_sha256"])

    def require_feature(self, feature: int) -> int:
        """The same number; `NotHere` where it is no feature."""
        if not 0 <= feature < self.d_sae:
            raise NotHere(f"Feature {feature} is not one of the {self.d_sae:,} of {self.name}, 0 to {self.d_sae - 1}.")
        return feature

    # Codes

    @cached_property
    def row_starts(self) -> NDArray[np.int64]:
        """`(n_rows + 1,)` where the stored activations of each row begin."""
        features = self.require_features()
        return features._read("indptr", 0, features.n_rows + 1).astype(np.int64)

    def row_number(self, name: str, row: int) -> Any:
        """A row's `split`, `label`, `x_norm`, `sse` or `cosine`, as features.zarr documents them."""
        column = self._row_columns.get(name)
        if column is not None:
            return column[row]
        features = self.require_features()
        if features.n_rows > _ROWS_IN_MEMORY:
            return features.row_numbers(name, row, row + 1)[0]
        self._row_columns[name] = features.row_numbers(name, 0, features.n_rows)
        return self._row_columns[name][row]

    def require_features(self) -> FeatureActivations:
        """The stored feature activations; `Unavailable` where there are none for these statistics."""
        if self.features is None:
            raise Unavailable(
                self.notes[0]
                if self.notes
                else f"{self.name} holds no feature activations: run `thresher encode`, then `thresher stats`."
            )
        return self.features

    def require_row(self, row: int) -> int:
        """The same number; `NotHere` where it is no encoded row."""
        features = self.require_features()
        if not 0 <= row < features.n_rows:
            raise NotHere(f"Row {row} is not one of the {features.n_rows:,} rows of the store.")
        return row

    def code(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The features > 0 on a row and their values, by falling value; ties by ascending feature."""
        features = self.require_features()
        if features.n_rows <= _ROWS_IN_MEMORY:
            first, last = int(self.row_starts[row]), int(self.row_starts[row + 1])
            index, value = features.entries(first, last)
        else:
            _, index, value = features.rows(row, row + 1)
        order = np.lexsort((index, -value))
        return index[order].astype(np.int64), value[order]

    # Images

    def label_name(self, label: int) -> str:
        """What a label is called; its number where the store has no names; `–` for none."""
        if label < 0:
            return "–"
        names = self.label_names
        return names[label] if label < len(names) else str(label)

    @cached_property
    def label_names(self) -> Sequence[str]:
        """Names by label; empty where the store has none."""
        return (self.store.label_names if self.store is not None else None) or []

    def labels(self, rows: Iterable[int]) -> list[int]:
        """Labels of rows, -1 for none."""
        features = self.features
        if features is None:
            return [-1 for _ in rows]
        return [int(self.row_number("label", row)) for row in rows]

    def rows_of_image(self, row: int) -> NDArray[np.int64]:
        """The rows of a row's image, one a token, in the order of the tokens."""
        store = self.require_store()
        number, local = store._part_of_row(row)
        order = store.parts[number].order
        return order.rows(order.images(np.array([local])))[0] + store._row_edges[number]

    def require_store(self) -> ActivationStore:
        """The encoded store; `Unavailable` where it is not reachable."""
        if self.store is None:
            raise Unavailable(
                f"The activation store {self.summary['store']} is not there any more, or holds other rows: thumbnails "
                "and keys of images come from it."
            )
        return self.store

    def key(self, row: int) -> str:
        """The stable id of a row's image, printable; empty where the store is not reachable."""
        if self.store is None:
            return ""
        return self.store.keys([row])[0].encode("utf-8", "replace").decode()

    @property
    def pictures_version(self) -> str:
        """What thumbnails are known by wherever they are kept, the start of the store's fingerprint; empty for none."""
        return "" if self.store is None else self.store.fingerprint[:12]

    @property
    def has_thumbnails(self) -> bool:
        """Whether the store is reachable and holds thumbnails."""
        return self.store is not None and self.store.thumbnail_px is not None

    def thumbnail(self, row: int) -> bytes | None:
        """WebP bytes of a row's image; None where the store holds none."""
        with self._lock:
            if row in self._thumbnails:
                self._thumbnails.move_to_end(row)
                return self._thumbnails[row]
        picture = self.require_store().thumbnail(row)
        with self._lock:
            if row not in self._thumbnails:
                self._thumbnails[row] = picture
                self._thumbnail_bytes += len(picture or b"")
            while self._thumbnail_bytes > _THUMBNAILS_KEPT_BYTES:
                self._thumbnail_bytes -= len(self._thumbnails.popitem(last=False)[1] or b"")
        return picture

    def picture(self, row: int) -> bytes:
        """Encoded bytes of a row's image at full size from its source, or its thumbnail where that is out of reach.

        Raises
        ------
        Unavailable
            When there is neither.
        """
        try:
            return self.original(row)
        except Unavailable:
            picture = self.thumbnail(row)
        if picture is None:
            raise Unavailable("The store holds no thumbnails, and the source of its images is out of reach.")
        return picture

    def original(self, row: int) -> bytes:
        """Encoded bytes of a row's image from its source, as they were harvested.

        Raises
        ------
        Unavailable
            When the source, or the image in it, is out of reach.
        """
        store = self.require_store()
        if "_source" not in self.__dict__:  # once, and others do not wait: a large data set's listing takes minutes
            if not self._opening.acquire(timeout=_LONGEST_OPENING_S):
                raise Unavailable("The images that the store was harvested from are being listed: try again soon.")
            try:
                self._source  # noqa: B018 (opened once)
            finally:
                self._opening.release()
        images = self._source
        if images is None:
            raise Unavailable(
                f"The images of the store ({store.provenance.image_source}) are not where they were harvested from, or "
                "are others now."
            )
        try:
            with self._lock:
                return images.read(int(store.images(row, row + 1)[0]))
        except (OSError, ValueError, StoreError) as error:
            raise Unavailable(f"The image of row {row} cannot be read from its source ({error}).") from error

    def size_of(self, row: int) -> tuple[int, int]:
        """Width and height of `picture(row)`."""
        from PIL import Image

        with Image.open(BytesIO(self.picture(row))) as opened:
            return opened.size

    @cached_property
    def _source(self) -> "ImageSet | None":
        """The images that the store was harvested from, where they are still the ones; of a store of one part."""
        from ...harvest.recorded import recorded_images

        store = self.store
        if store is None or len(store.parts) != 1:
            return None
        stack = ExitStack()
        try:
            images = stack.enter_context(recorded_images(store.parts[0].provenance))
        except (StoreError, ValueError, OSError):
            return None
        atexit.register(stack.close)  # until then the stack keeps them open, and files that were unpacked for them
        return images

    @cached_property
    def tower(self) -> "RunTower":
        """The run's tower and SAE, loaded at first need; `Unavailable` says why they cannot be."""
        from .tower import RunTower

        return RunTower(self)

    def _open_store(self) -> ActivationStore | None:
        place = self.summary["store"]
        if place is None:
            return None
        try:
            return open_encoded_store(self.run, str(place), self.summary["store_fingerprint"])
        except StoreError as error:
            self.notes.append(f"{str(error).rstrip('.')}: no thumbnails, no names of images.")
            return None


def _damaged(name: str, error: Exception) -> Unavailable:
    """What is said of an array that cannot be read: zarr and its codecs raise nearly any type on damaged bytes."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return Unavailable(f"The statistics are damaged, {name} ({reason}): run `thresher stats --overwrite`.")


_PRELOADED = {
    "histogram": ("histogram/counts", "histogram/edges"),
    "samples": ("samples/row", "samples/value", "samples/label"),
    "cofiring": ("cofiring/feature", "cofiring/jaccard", "cofiring/pmi", "cofiring/n_both"),
    "nearest": tuple(f"nearest/{side}_{what}" for side in ("decoder", "encoder") for what in ("feature", "cosine")),
    "labels": ("labels/indptr", "labels/label", "labels/count", "labels/sum", "labels/n_labelled"),
    "null": ("null/mean", "null/sd", "null/p"),
    "monosemanticity": ("monosemanticity",),
}
