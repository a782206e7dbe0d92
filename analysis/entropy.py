"""Label entropy: how many classes share the rows on which a feature is largest."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def label_entropy(
    top_value: NDArray[np.float32], top_label: NDArray[Any], *, min_labelled: int
) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """Entropy in nats of the labels of each feature's largest rows, weighted by their values.

    H = -sum_c q_c ln q_c with q_c proportional to the sum of the values of the rows with label c, over the rows that
    fire and have a label. The post's code added 1e-9 inside the logarithm and took unfilled places for rows of one
    class; here 0 ln 0 = 0 and such places do not count.

    There is no correction for the small sample (Miller and Madow's (m - 1) / 2n for m classes seen in n rows): it is
    of independent rows of equal weight as a sample of a population, while these are all of the strongest rows,
    weighted, and where each has a class of its own it would lift H above ln n. What H would be by chance is computed
    instead (`entropy_null`).

    Parameters
    ----------
    top_value
        `(d_sae, k)`: the largest values; 0 where fewer than k rows fire.
    top_label
        `(d_sae, k)`: labels of those rows; -1 for none.
    min_labelled
        Below this many firing labelled rows the entropy is undefined.

    Returns
    -------
    entropy
        `(d_sae,)` float32, NaN where undefined.
    n_labelled
        `(d_sae,)` uint16: the firing labelled rows among the k.
    """
    share, n_labelled = label_shares(top_value, top_label)
    # The label above, the place below: sorting these numbers is five times as fast as `argsort` of the labels.
    n_features, k = share.shape
    bits = max(1, (k - 1).bit_length())
    key = np.where(share > 0, top_label.astype(np.int64) << bits, np.iinfo(np.int64).max >> bits << bits)
    key |= np.arange(k)
    key.sort(axis=1)
    share = np.take_along_axis(share, key & ((1 << bits) - 1), axis=1)
    label = key >> bits
    is_new = np.ones((n_features, k), bool)
    is_new[:, 1:] = label[:, 1:] != label[:, :-1]
    entropy = entropy_of_runs(share, is_new)
    entropy[n_labelled < max(min_labelled, 1)] = np.nan
    return entropy.astype(np.float32), n_labelled


def effective_sample_size(top_value: NDArray[np.float32], top_label: NDArray[Any]) -> NDArray[np.float32]:
    """`(d_sae,)`: how many rows of equal weight the labelled rows amount to, 1 / sum p^2; NaN where there is none.

    p are the shares by which label entropy weighs them (Kish's effective sample size, (sum w)^2 / sum w^2).
    """
    share, n_labelled = label_shares(top_value, top_label)
    squares = np.einsum("ij,ij->i", share, share)
    return np.divide(1, squares, out=np.full(len(share), np.nan), where=n_labelled > 0).astype(np.float32)


def label_shares(
    top_value: NDArray[np.float32], top_label: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.uint16]]:
    """`(d_sae, k)`: share of each row in its feature's labelled activation, 0 where it does not count; their number."""
    counted = (top_value > 0) & (top_label >= 0)
    weight = np.where(counted, top_value, 0).astype(np.float64)
    total = weight.sum(axis=1, keepdims=True)
    n_labelled = counted.sum(axis=1).astype(np.uint16)
    return np.divide(weight, total, out=weight, where=total > 0), n_labelled


def entropy_of_runs(share: NDArray[np.float64], is_new: NDArray[np.bool_]) -> NDArray[np.float64]:
    """`(d_sae,)`: entropy in nats of the sums of each run of shares.

    Parameters
    ----------
    share
        `(d_sae, k)`: shares that sum to 1, or 0 throughout; each class's beside each other.
    is_new
        `(d_sae, k)` or `(k,)`: where a class begins.
    """
    n_features, k = share.shape
    if not share.size:
        return np.zeros(n_features)
    if is_new.ndim == 1:
        class_share = np.add.reduceat(share, np.flatnonzero(is_new), axis=1)  # (d_sae, classes)
        terms = _p_ln_p(class_share)
        entropy, n_classes = -terms.sum(axis=1), (class_share > 0).sum(axis=1)
    else:
        starts = np.flatnonzero(is_new.ravel())
        class_share = np.add.reduceat(share.ravel(), starts)
        feature = starts // k  # of each class
        entropy = -np.bincount(feature, weights=_p_ln_p(class_share), minlength=n_features)
        n_classes = np.bincount(feature, weights=class_share > 0, minlength=n_features)
    # One class is exactly 0, where rounding of its shares' sum would leave 1e-16 on one side or the other.
    entropy[n_classes <= 1] = 0.0
    return entropy


def _p_ln_p(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return p * np.log(p, out=np.zeros_like(p), where=p > 0)
