"""The writing of `features.zarr`: block by block, so that a killed process's successor goes on where it was.

Whole chunks go to their files as they are full. From time to time one small record, written atomically, says where
every array stands, with the values that no whole chunk holds yet, the sums of the sections and the counts of each
feature. What was written after the record is computed and written again, and comes out the same: blocks of rows are cut
alike whoever encodes them. Sorting by feature starts anew.
"""

import io
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..progress import Reporter
from ..store.files import write_atomically
from .by_feature import write_by_feature
from .columns import ColumnState
from .encode_source import EncodeSource, ReadBlock
from .encoded_block import EncodedBlock
from .features import FeaturesInfo, read_entries
from .quality import write_sections
from .row_columns import RowColumns
from .section_table import SectionTable

RECORD = ".progress.npz"
_RECORD_EVERY_S = 30.0  # a record is some 10 MB and waits for the disk


class FeatureWriter:
    """Writes the feature activations of one run.

    Parameters
    ----------
    folder
        To fill; what an earlier writer of the same numbers left there is gone on with, anything else removed.
    source
        What is encoded.
    """

    def __init__(self, folder: Path, source: EncodeSource) -> None:
        self._folder, self._source = folder, source
        store = source.store
        self._sections = SectionTable.of_store(store.n_rows, store.tokens_per_image, source.splits.held_out_start)
        record = _read_record(folder / RECORD, source.identity)
        if record is None:
            self._begin()
        else:
            self._go_on(record)
        self._recorded_s = time.monotonic()

    def _begin(self) -> None:
        for path in self._folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.next_row = 0
        """Row from which on nothing is written."""
        self.n_encoded = 0
        """Rows encoded so far."""
        self._n_active = np.zeros(self._source.sae.d_sae, np.int64)
        self._group = zarr.open_group(str(self._folder), mode="w", zarr_format=3)
        self._columns = RowColumns(self._group, self._source.store.n_rows)

    def _go_on(self, record: dict[str, NDArray[Any]]) -> None:
        for name in ("by_feature", "sections"):
            shutil.rmtree(self._folder / name, ignore_errors=True)
        for left in self._folder.glob(".by_feature-*"):
            shutil.rmtree(left)
        self.next_row, self.n_encoded = int(record["next_row"]), int(record["n_encoded"])
        self._n_active = record["n_active"]
        if self.n_encoded:
            self._sections.restore(_below(record, "section/"))
        n_written, tails = _below(record, "written/"), _below(record, "tail/")
        states = {path: ColumnState(int(n_written[path]), tail) for path, tail in tails.items()}
        self._group = zarr.open_group(str(self._folder), mode="r+")
        self._columns = RowColumns(self._group, self._source.store.n_rows, states)

    def add(self, rows: ReadBlock, split: NDArray[np.uint8], block: EncodedBlock | None) -> None:
        """Add consecutive rows; `block` holds those of which `split` says that they were encoded."""
        assert rows.start == self.next_row
        if block is not None:
            self._n_active += np.bincount(block.index, minlength=len(self._n_active))
            self._sections.add(rows.start, split, block)
            self.n_encoded += len(block.counts)
        self._columns.append(split, rows.labels, block)
        self.next_row = rows.stop
        if time.monotonic() - self._recorded_s > _RECORD_EVERY_S:
            self.record()

    def record(self) -> None:
        """Make durable what is written, and where to go on."""
        states, files = self._columns.settle()
        for file in files:
            _sync(self._folder / file)
        record: dict[str, NDArray[Any]] = {
            "identity": np.array(self._source.identity),
            "next_row": np.array(self.next_row),
            "n_encoded": np.array(self.n_encoded),
            "n_active": self._n_active,
        }
        for path, state in states.items():
            record |= {f"written/{path}": np.array(state.n_written), f"tail/{path}": state.tail}
        if self.n_encoded:
            record |= {f"section/{name}": values for name, values in self._sections.arrays().items()}
        stream = io.BytesIO()
        np.savez(stream, **record)  # type: ignore[arg-type]  # (of its own option, which is no array)
        write_atomically(self._folder / RECORD, stream.getbuffer())
        self._recorded_s = time.monotonic()

    def drop_useless(self) -> None:
        """Remove what is written where no record says how to go on."""
        if not (self._folder / RECORD).exists():
            shutil.rmtree(self._folder, ignore_errors=True)

    def finish(self, reporter: Reporter) -> FeaturesInfo:
        """Write what is still held, then all of it once more by feature."""
        self.record()
        self._columns.close()
        info = self._source.info(self._sections.rows_by_split, int(self._n_active.sum()))
        write_sections(self._group, self._sections.arrays())
        with reporter.task("sorting by feature", info.nnz, "entries") as task:
            entries = read_entries(self._group, info)
            write_by_feature(self._group, self._folder, self._n_active, info.n_rows, entries, task)
        (self._folder / RECORD).unlink()
        self._group.attrs.update(info.to_attributes())  # last: what has these is whole
        return info


def _read_record(path: Path, identity: str) -> dict[str, NDArray[Any]] | None:
    """The record of an earlier writer of the same numbers; None where there is none that can be read."""
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            if str(file["identity"]) != identity:
                return None
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError):
        return None
    except Exception as error:  # zipfile's own, of a file that is damaged
        if type(error).__module__ in ("zipfile", "zlib"):
            return None
        raise


def _below(record: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): values for name, values in record.items() if name.startswith(prefix)}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
