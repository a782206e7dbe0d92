"""Label entropy by chance: what it would be if a feature's strongest rows bore labels drawn at random."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .entropy import entropy_of_runs, label_shares

Array = NDArray[Any]


@dataclass(frozen=True)
class EntropyNull:
    """Label entropy of each feature under random labels."""

    n_draws: int
    mean: NDArray[np.float32]
    """`(d_sae,)`: nats, over the draws; NaN where the entropy is undefined."""
    sd: NDArray[np.float32]
    """`(d_sae,)`: its standard deviation over the draws; 0 where no draw differs."""
    p: NDArray[np.float32]
    """`(d_sae,)`: (1 + draws whose entropy is at most the feature's) / (1 + draws): small of features that know labels.
    """

    def z(self, entropy: Array) -> NDArray[np.float64]:
        """`(d_sae,)`: how many deviations the entropy lies from its mean by chance; NaN where no draw differs."""
        sd = self.sd.astype(np.float64)
        return np.divide(entropy - self.mean, sd, out=np.full(len(sd), np.nan), where=sd > 0)


def entropy_null(
    top_value: NDArray[np.float32],
    top_label: NDArray[Any],
    entropy: NDArray[np.float32],
    label_rows: NDArray[np.int64],
    *,
    n_draws: int,
    seed: int,
) -> EntropyNull | None:
    """Permute the labels of all labelled rows `n_draws` times and take each feature's label entropy anew.

    A feature keeps its rows' activations; only their labels change. What k strongest rows get in a permutation is k
    labels drawn without replacement from all rows', so that is what is drawn, once for all features: their nulls share
    their draws, and each is as it would be alone. Draws that give every row a label of its own all give the same
    entropy, which is computed once: of 1,000 classes and 20 rows, that is five draws in six.

    Parameters
    ----------
    top_value, top_label
        `(d_sae, k)`: as for `label_entropy`.
    entropy
        `(d_sae,)`: the feature's own, NaN where undefined.
    label_rows
        `(n_labels,)`: how many labelled rows there are of each label.
    n_draws, seed
        How often, and which.

    Returns
    -------
    EntropyNull or None
        None without draws, or without labelled rows.
    """
    n_labelled_rows = int(label_rows.sum())
    if n_draws == 0 or n_labelled_rows == 0:
        return None
    share = np.ascontiguousarray(label_shares(top_value, top_label)[0])  # (d_sae, k)
    k = share.shape[1]
    rng, last_row = np.random.default_rng(seed), np.cumsum(label_rows)
    total, squares, at_most = (np.zeros(len(share)) for _ in range(3))
    # Rounding must not tell an entropy from the same labels' entropy in another order; the feature's own is float32.
    own = entropy.astype(np.float64) + 1e-6
    n_distinct = 0
    shift = np.zeros(len(share))
    for _ in range(n_draws):
        labels = _drawn_labels(rng, n_labelled_rows, last_row, k)
        order = np.argsort(labels, kind="stable")
        is_new = np.append(True, np.diff(labels[order]) != 0)
        if is_new.all():
            n_distinct += 1
            continue
        drawn = entropy_of_runs(share[:, order], is_new)
        if not shift.any():
            shift = drawn  # sums about a value near the mean, where cancellation does no harm
        total += drawn - shift
        squares += (drawn - shift) ** 2
        at_most += drawn <= own
    if n_distinct:
        drawn = entropy_of_runs(share, np.ones(k, bool))
        total += n_distinct * (drawn - shift)
        squares += n_distinct * (drawn - shift) ** 2
        at_most += n_distinct * (drawn <= own)
    mean = total / n_draws
    sd = np.sqrt(np.maximum(squares / n_draws - mean**2, 0))
    sd[sd < 1e-7] = 0.0  # rounding alone
    defined = ~np.isnan(entropy)
    numbers = (np.where(defined, x, np.nan) for x in (shift + mean, sd, (1 + at_most) / (1 + n_draws)))
    return EntropyNull(n_draws, *(x.astype(np.float32) for x in numbers))


def _drawn_labels(rng: np.random.Generator, n_rows: int, last_row: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """`(k,)`: numbers of labels of k different rows; of fewer than k rows, all of theirs and then others of none's."""
    rows = rng.choice(n_rows, min(k, n_rows), replace=False, shuffle=True)
    labels = np.searchsorted(last_row, rows, side="right")
    return np.concatenate((labels, len(last_row) + np.arange(k - len(labels))))
