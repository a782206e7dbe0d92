"""Makes what is damaged of one part again: from what it holds beside it, else from the images that it was made of."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..progress import Reporter, format_rate, format_s
from . import format as f
from .errors import StoreError, UnreachableStoreError
from .layout import StoreSpec
from .objects import Lock
from .part_check import PartCheck, Problem, Repaired
from .part_files import PartFiles
from .provenance import Provenance
from .self_repair import OF_IMAGES, Key, SelfRepair, Where
from .static import write_static_array
from .verify import whole_part_problems
from .window_repair import WindowRepair
from .writer import StoreWriter, WindowWriter

_DIGESTED = "images"  # what `verify` calls keys and labels together
_WITH_THE_REST = "right again with the rest of its window"


class SourceImages(Protocol):
    """The images that a part was made of."""

    keys: Sequence[bytes]
    labels: NDArray[np.signedinteger[Any]]


class Recomputed(Protocol):
    """Some rows of a window, made again."""

    window: int
    n_images: int
    is_last: bool

    def put_into(self, writer: WindowWriter) -> None:
        """Give them to their window."""


@dataclass(frozen=True)
class Harvest:
    """How images and rows are had again. The harvest room gives it: the store knows no tower."""

    images: Callable[[Provenance], AbstractContextManager[Any]]
    """Opens the `SourceImages` of a provenance; an error in one line where they are not there, or others."""
    windows: Callable[[StoreSpec, Sequence[int], Any, Lock], Generator[Any, None, None]]
    """The rows of windows from such images, as `Recomputed`, window after window; an error in one line where the tower
    is not the one of then. Processes that it starts let go of the lock."""
    versions: Mapping[str, str]
    """Of the packages that compute rows."""


class PartRepair:
    """The repair of one part whose metadata is whole.

    Parameters
    ----------
    files
        Of the part.
    harvest
        For rows that nothing in the part tells.
    held
        What keeps other writers away.
    reporter
        Told of rows that are not, to the last bit, what they were.
    """

    def __init__(self, files: PartFiles, harvest: Harvest, held: Lock, reporter: Reporter) -> None:
        self._files, self._harvest, self._held, self._reporter = files, harvest, held, reporter
        self._how: dict[Where, str] = {}
        self._why_not: dict[Where, str] = {}
        self._own = SelfRepair(files, self._how)

    def run(self, problems: Sequence[Problem]) -> tuple[list[Repaired], list[Problem]]:
        """Repair what can be.

        Parameters
        ----------
        problems
            Of the part.

        Returns
        -------
        What was repaired, and what is still wrong, with the reason.
        """
        wrong = {(problem.array, problem.chunk): problem for problem in problems}
        left = [(name, chunk) for name, chunk in wrong if chunk is not None]
        left = [key for key in left if not self._own.repair(key)]
        images = [key for key in left if key[0] in OF_IMAGES]
        if images and self._own.record_images(images):
            left = [key for key in left if key not in images]
        is_digest_wrong = (_DIGESTED, None) in wrong
        if left or is_digest_wrong:
            self._repair_from_source(left, rewrite_images=is_digest_wrong)
        still = self._check(wrong)
        repaired = [Repaired(wrong[key], self._how.get(key, _WITH_THE_REST)) for key in wrong if key not in still]
        return repaired, [self._explained(key, problem) for key, problem in still.items()]

    def _repair_from_source(self, left: Sequence[Key], *, rewrite_images: bool) -> None:
        """Read the images again: for their keys and labels, and for the rows of their windows."""
        spec, reason = self._files.spec, ""
        try:
            with self._harvest.images(spec.provenance) as images:
                self._rewrite_images(left, images, every_chunk=rewrite_images)
                self._rewrite_windows([key for key in left if key[0] not in OF_IMAGES], images)
        except UnreachableStoreError:
            raise
        except (StoreError, ValueError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
        for key in [*left, (_DIGESTED, None)]:
            if key not in self._how:
                self._why_not.setdefault(key, reason)

    def _rewrite_images(self, left: Sequence[Key], images: SourceImages, *, every_chunk: bool) -> None:
        for name in OF_IMAGES:
            only = None if every_chunk else {chunk for array, chunk in left if array == name}
            if only is None or only:
                arguments = (self._files.objects, self._files.spec, name, images.keys, images.labels)
                write_static_array(*arguments, self._files.metadata_crc32c, only)
        for key in [*left, (_DIGESTED, None)]:
            if key[0] in (*OF_IMAGES, _DIGESTED):
                self._how[key] = "made again from the source"

    def _rewrite_windows(self, left: Sequence[Key], images: SourceImages) -> None:
        files, t = self._files, self._files.spec.tokens_per_image
        damaged: dict[int, list[Key]] = {}
        for key in left:
            damaged.setdefault(key[1] if key[0] == f.THUMBS else key[1] // t, []).append(key)
        if not damaged:
            return
        writer = StoreWriter(files.objects, files.spec, files.metadata_crc32c, None)
        repair = WindowRepair(files, self._harvest.versions, self._reporter)
        recomputed = self._harvest.windows(files.spec, sorted(damaged), images, self._held)
        places = [writer.window_images(number) for number in sorted(damaged)]
        n_images = sum(stop - first for first, stop in places)
        forecast = _Forecast(n_images, self._reporter)
        self._reporter.say(
            f"{files.objects}: {n_images:,} images of {len(damaged):,} windows are decoded and go through the tower "
            "again."
        )
        with self._reporter.task("repair", n_images, "images") as task, closing(recomputed):
            window: WindowWriter | None = None
            for rows in recomputed:
                forecast.count(rows.n_images)
                window = window or WindowWriter(writer, rows.window)
                rows.put_into(window)
                if rows.is_last:
                    how, reason = repair.write(window, damaged[rows.window])
                    self._how.update((key, done) for key, done in how.items())
                    self._why_not.update({key: reason for key in damaged[rows.window] if key not in how})
                    window = None
                task.advance(rows.n_images)

    def _check(self, wrong: Mapping[Where, Problem]) -> dict[Where, Problem]:
        """What is wrong now among what was, and in the windows that were written."""
        files, t = self._files, self._files.spec.tokens_per_image
        check = PartCheck(files)
        keys = {(name, chunk) for name, chunk in wrong if chunk is not None}
        windows = {chunk // t for name, chunk in keys if name == f.ROW_VALID}
        for array in files.row_arrays:
            of_windows = (chunk for window in windows for chunk in range(window * t, (window + 1) * t))
            keys |= {(array.name, chunk) for chunk in of_windows if chunk < array.n_chunks}
        found: list[Problem] = []
        for name, chunk in sorted(keys):
            found += (
                check.thumbnails([chunk]) if name == f.THUMBS else check.chunks(files.array(name), [chunk])
            ).problems
        found += whole_part_problems(check, found)
        still = {(problem.array, problem.chunk): problem for problem in found}
        lost = {key: problem for key, problem in wrong.items() if key[1] is None and key[0].endswith(".json")}
        return still | lost

    def _explained(self, key: Where, problem: Problem) -> Problem:
        reason = self._why_not.get(key)
        return replace(problem, what=f"{problem.what}; not repaired: {reason}") if reason else problem


class _Forecast:
    """Says once how long a repair takes, when its second batch tells: the first waits for the model to be loaded."""

    def __init__(self, n_images: int, reporter: Reporter) -> None:
        self._n_left, self._reporter = n_images, reporter
        self._n_batches, self._first_s = 0, 0.0

    def count(self, n_images: int) -> None:
        """Take note of a batch."""
        self._n_left -= n_images
        self._n_batches += 1
        if self._n_batches == 1:
            self._first_s = time.monotonic()
        if self._n_batches == 2 and self._n_left:
            per_s = n_images / max(1e-6, time.monotonic() - self._first_s)  # the clock may not have moved
            self._reporter.say(
                f"repair: about {format_s(self._n_left / per_s)} left ({format_rate(per_s)} images/s measured on one "
                "batch)."
            )
