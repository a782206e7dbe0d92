"""The float64 sums of all sections of a store, filled block by block, in one process or several."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .encoded_block import EncodedBlock
from .features import NOT_ENCODED
from .quality import SUMS, SectionSums, section_arrays, section_edges


class SectionTable:
    """Sums by section and split.

    Parameters
    ----------
    edges
        First row of each section, and the row after the last.
    """

    def __init__(self, edges: NDArray[np.int64]) -> None:
        self._edges = edges
        self._sums: dict[tuple[int, int], SectionSums] = {}

    @classmethod
    def of_store(cls, n_rows: int, tokens_per_image: int, held_out_start: int | None) -> Self:
        """Without rows; see `section_edges`."""
        return cls(section_edges(n_rows, tokens_per_image, held_out_start))

    def add(self, first: int, split: NDArray[np.uint8], block: EncodedBlock) -> None:
        """Add a block's encoded rows, of the physical rows from `first` on."""
        encoded = np.flatnonzero(split != NOT_ENCODED)
        section_of = np.searchsorted(self._edges, first + encoded, side="right") - 1
        for section in np.unique(section_of).tolist():
            start, stop = np.searchsorted(section_of, [section, section + 1])
            codes = split[encoded[start:stop]]
            for code in np.unique(codes).tolist():
                of = codes == code
                at = slice(start, stop) if of.all() else start + np.flatnonzero(of)
                if (section, code) not in self._sums:
                    row_start, row_stop = self._edges[section : section + 2].tolist()
                    self._sums[section, code] = SectionSums.zero(code, row_start, row_stop, block.x.shape[1])
                n_active = int(block.counts[at].sum())
                self._sums[section, code].add(block.x[at], block.norm[at], block.sse[at], block.l1[at], n_active)

    def copy(self) -> Self:
        """The same sums, to be added to."""
        copy = type(self)(self._edges)
        copy._sums = {
            key: replace(sums, sums=sums.sums.copy(), x_sum=sums.x_sum.copy()) for key, sums in self._sums.items()
        }
        return copy

    def merge(self, other: "SectionTable") -> None:
        """Add the rows of another table of the same store, which come after these."""
        for key, sums in other._sums.items():
            if key in self._sums:
                self._sums[key].merge(sums)
            else:
                self._sums[key] = replace(sums, sums=sums.sums.copy(), x_sum=sums.x_sum.copy())

    @property
    def rows_by_split(self) -> dict[int, int]:
        """Rows by the code of their split."""
        rows: dict[int, int] = {}
        for sums in self._sums.values():
            rows[sums.split] = rows.get(sums.split, 0) + sums.n
        return rows

    def sections(self) -> list[SectionSums]:
        """Those with rows, in their order."""
        return [self._sums[key] for key in sorted(self._sums)]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it, as `features.zarr/sections` holds it."""
        return section_arrays(self.sections())

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the place of a table from its `arrays`."""
        self._sums = {}
        sums = np.column_stack([arrays[name] for name in SUMS])
        for i, row_start in enumerate(arrays["row_start"].tolist()):
            code, section = int(arrays["split"][i]), int(np.searchsorted(self._edges, row_start))
            self._sums[section, code] = SectionSums(
                code,
                row_start,
                int(arrays["row_stop"][i]),
                int(arrays["n"][i]),
                sums[i].copy(),
                arrays["x_sum"][i].copy(),
            )
