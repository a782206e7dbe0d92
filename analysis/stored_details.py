"""The details of stored statistics, read a feature at a time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..store.errors import StoreError
from .entropy_null import EntropyNull
from .samples import SAMPLE_GROUPS

Array = NDArray[Any]


@dataclass(frozen=True)
class FeatureSamples:
    """Some firing rows of a feature."""

    row: NDArray[np.int64]
    """Rows of the store."""
    value: NDArray[np.float32]
    """The feature's activations there, falling."""
    label: NDArray[np.int32]
    """Labels of the rows, -1 for none."""


@dataclass(frozen=True)
class FeatureLabels:
    """Labels of all firing rows of a feature."""

    label: NDArray[np.int32]
    """Ascending."""
    count: NDArray[np.uint32]
    """Rows with that label."""
    sum: NDArray[np.float64]
    """Sum of the feature's activations on them."""


@dataclass(frozen=True)
class FeaturePartners:
    """Features that fire on the same rows as a feature."""

    feature: NDArray[np.int32]
    """By falling Jaccard index."""
    jaccard: NDArray[np.float32]
    pmi: NDArray[np.float32]
    """In nats."""
    n_both: NDArray[np.uint32]
    """Rows on which both fire."""


class StoredDetails:
    """What `stats` stored of each feature beyond its numbers; every method raises `StoreError` where it is absent."""

    def __init__(self, group: Any, path: Path, absent: dict[str, str]) -> None:
        self._group, self._path, self._absent = group, path, absent
        self._opened: dict[str, Any] = {}

    def has(self, name: str) -> bool:
        """Whether it is there: a name that `absent` in stats.json may have, such as `samples` or `nearest`."""
        array = {"labels": "labels/indptr", "monosemanticity": "monosemanticity", "l0_without_uld": "l0/without_uld"}
        return array.get(name, name) in self._group

    def array(self, name: str) -> Any:
        """A zarr array of `stats.zarr` by its name there, such as `samples/row`; opened once."""
        if name not in self._opened:
            part = {"l0/without_uld": "l0_without_uld"}.get(name, name.split("/")[0])
            if name not in self._group:
                why = self._absent.get(part, "it has no such array")
                raise StoreError(f"{self._path} holds no {name} in its statistics: {why}.")
            self._opened[name] = self._group[name]
        return self._opened[name]

    def samples(self, feature: int) -> dict[str, FeatureSamples]:
        """Firing rows around the top and the 75, 50 and 25 % quantiles, and at random: `top`, `q75`, ..., `random`."""
        self._require(feature)
        row, value, label = (self.array(f"samples/{name}")[feature] for name in ("row", "value", "label"))
        return {
            name: FeatureSamples(row[i][row[i] >= 0], value[i][row[i] >= 0], label[i][row[i] >= 0])
            for i, name in enumerate(SAMPLE_GROUPS)
        }

    def labels(self, feature: int) -> FeatureLabels:
        """Labels of all rows on which a feature fires."""
        self._require(feature)
        first, last = (int(edge) for edge in self.array("labels/indptr")[feature : feature + 2])
        label, count, total = (self.array(f"labels/{name}")[first:last] for name in ("label", "count", "sum"))
        return FeatureLabels(label, count, total)

    def partners(self, feature: int) -> FeaturePartners:
        """Features that fire on the same rows."""
        self._require(feature)
        arrays = [self.array(f"cofiring/{name}")[feature] for name in ("feature", "jaccard", "pmi", "n_both")]
        filled = arrays[0] >= 0
        return FeaturePartners(*(values[filled] for values in arrays))

    def nearest(self, feature: int, by: str = "decoder") -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Features with the most similar decoder (or `encoder`) direction, and their cosines, falling."""
        self._require(feature)
        if by not in ("decoder", "encoder"):
            raise ValueError(f"by must be decoder or encoder; got {by!r}")
        near, cosine = (self.array(f"nearest/{by}_{name}")[feature] for name in ("feature", "cosine"))
        return near[near >= 0], cosine[near >= 0]

    def null(self) -> EntropyNull:
        """Label entropy of every feature under random labels."""
        mean, sd, p = (self.array(f"null/{name}")[:] for name in ("mean", "sd", "p"))
        return EntropyNull(int(self._group["null"].attrs["n_draws"]), mean, sd, p)

    def _require(self, feature: int) -> None:
        n = self.array("n_active").shape[0]
        if not 0 <= feature < n:
            raise ValueError(f"feature {feature} is not one of the {n} features, 0 to {n - 1}")
