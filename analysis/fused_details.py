"""What all firings of features tell, where none is kept: found by encoding the rows once more.

The first pass counts; only then it is known which features are of the ULD cluster, in what units sums are exact and
where a feature's samples lie. The second pass finds everything else at once. Samples whose places the histograms leave
too wide cost passes between (`sample_search.py`).
"""

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..progress import Reporter, format_s
from .clusters import UldSplit
from .cofiring import CofiringRows, Partners, choose_runs, cofiring, entries_per_row
from .encode_source import EncodeSource
from .features import FeaturesInfo
from .firings import Firings, FiringsSpec
from .fused_pass import (
    Found,
    Known,
    Wanted,
    forget_known,
    found_of_range,
    merge_found,
    merge_steps,
    steps_of_range,
    write_known,
)
from .fused_statistics import fused_ranges
from .monosemanticity import require_embeddings_of
from .options import StatsOptions
from .sample_search import MOST_PASSED, SampledRows, SampleSearch
from .scheduler import Compute
from .statistics import FeatureStatistics, reduce_totals

_INDPTR, _INDEX = "indptr.npy", "index.npy"
_FOLDER = ".details-"

Array = NDArray[Any]


@contextmanager
def fused_details(
    source: EncodeSource,
    info: FeaturesInfo,
    statistics: FeatureStatistics,
    uld: UldSplit,
    options: StatsOptions,
    *,
    pass_s: float,
    compute: Compute,
    reporter: Reporter,
) -> Iterator["FusedFirings"]:
    """Encode the rows again, where the options ask for details that need it, and give what was found.

    Every process must see the run's folder: what the tasks need lies there while this runs.

    Parameters
    ----------
    info, statistics, uld
        Of the first pass.
    pass_s
        Seconds that one pass takes.
    """
    firings = FusedFirings(options, compute, reporter)
    if not needs_second_pass(options) and uld.threshold is None:
        yield firings
        return
    for left in source.run_path.glob(f"{_FOLDER}*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_FOLDER, dir=source.run_path) as folder:
        runs: list[tuple[int, int]] = []
        if options.cofiring:
            runs = choose_runs(info.row_start, info.row_stop, entries_per_row(info), options.cofiring_rows)
        embeddings = options.embeddings
        if embeddings is not None:
            require_embeddings_of(embeddings, info.n_rows, info.store)
            if Path(embeddings).exists():
                embeddings = str(Path(embeddings).absolute())
        n_active, m = statistics.n_active, options.samples
        search = SampleSearch.of_histogram(n_active, statistics.histogram, m, options.seed) if m else None
        wanted = Wanted(
            folder=str(Path(folder).absolute()),
            number=0,
            runs=tuple(runs),
            max_l0_row=statistics.max_l0_row,
            embeddings=embeddings,
        )
        firings.known = Known(statistics.units, ~uld.is_uld, search)
        ranges, numbers = fused_ranges(source, options.task_bytes), itertools.count()

        def once_more(of_range: Callable[..., Any], merge: Callable[..., Any]) -> Any:
            from dask import delayed

            numbered = replace(wanted, number=next(numbers))
            write_known(numbered, firings.known)
            leaves = [delayed(partial(of_range, numbered), pure=False)(each) for each in ranges]
            return reduce_totals(leaves, compute, reporter, partial(merge, numbered), what="details")

        try:
            while search is not None and search.n_passed > MOST_PASSED:
                reporter.say(f"encoding the rows once more to find where samples lie, about {format_s(pass_s)}")
                search = search.narrowed(once_more(steps_of_range, merge_steps))
                firings.known = replace(firings.known, search=search)
            reporter.say(f"encoding the rows once more for the details of all firings, about {format_s(pass_s)}")
            found: Found = once_more(found_of_range, merge_found)
        finally:
            forget_known()
        if found.n_entries != info.nnz:
            reporter.warn(
                f"{info.nnz:,} activations were counted at first and {found.n_entries:,} when the rows were encoded "
                "again: the machines that did so do not round alike. Samples and labels may be off by those between."
            )
        indptr = np.concatenate(([0], np.cumsum(found.kept_counts)))
        np.save(Path(folder) / _INDPTR, indptr)
        np.save(Path(folder) / _INDEX, found.kept_index)
        firings.folder, firings.found = folder, found
        firings.rows = CofiringRows.of_entries(runs, found.n_kept, indptr, found.kept_index, statistics.d_sae)
        yield firings


def needs_second_pass(options: StatsOptions) -> bool:
    """Whether these options need the rows to be encoded again, whatever the first pass finds."""
    return bool(options.samples or options.cofiring or options.embeddings)


@dataclass
class FusedFirings:
    """What the second pass found, as `details.AllFirings`; what was not asked for is not there."""

    options: StatsOptions
    compute: Compute
    reporter: Reporter
    folder: str = ""
    """Where the features of `rows` are."""
    known: Known = None  # type: ignore[assignment]  # (set before it is read, as are these)
    found: Found = None  # type: ignore[assignment]
    rows: CofiringRows = None  # type: ignore[assignment]

    def l0_of(self, is_counted: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many rows have exactly i of the features outside the ULD cluster."""
        assert np.array_equal(is_counted, self.known.is_counted)
        return self.found.l0.astype(np.int64)

    def row(self, row: int) -> tuple[Array, NDArray[np.float32]]:
        """Features of the row with the largest L0, and their activations."""
        assert self.found.max_row is not None
        return self.found.max_row

    def firings(self, spec: FiringsSpec) -> Iterator[Firings]:
        """Samples and labels of all features."""
        search, arrays, labels = self.known.search, self.found.sampled, self.found.labels
        assert search is not None
        assert arrays is not None
        assert labels is not None
        samples = SampledRows(search, [arrays]).samples()
        yield Firings(0, *samples, labels.finish(self.known.units, min_labelled=spec.min_labelled))

    def cofiring_rows(self) -> CofiringRows:
        """The rows that partners are counted on."""
        return self.rows

    def partners(self, rows: CofiringRows) -> Iterator[Partners]:
        """Best partners, a range of features at a time, in order."""
        read = partial(_kept_entries, self.folder)
        return cofiring(read, rows, self.options.cofiring, compute=self.compute, reporter=self.reporter)

    def monosemanticity(self, embeddings_path: str) -> NDArray[np.float32]:
        """`(d_sae,)`: scores by the embeddings that the pass was given."""
        assert embeddings_path == self.options.embeddings
        assert self.found.similarity is not None
        return self.found.similarity.scores(self.known.units)


def _kept_entries(folder: str) -> tuple[Array, Array]:
    return np.load(Path(folder) / _INDPTR), np.load(Path(folder) / _INDEX)
