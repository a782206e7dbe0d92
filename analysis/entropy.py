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
    counted = (top_value > 0) & (top_label >= 0)
    n_labelled = counted.sum(axis=1).astype(np.uint16)
    weight = np.where(counted, top_value, 0).astype(np.float64)  # (d_sae, k)
    total = weight.sum(axis=1, keepdims=True)
    share = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
    # H = -sum_i p_i ln q_label(i): each row brings its own share times the log of its class's share. The shares of
    # the classes are run sums over the rows in order of their labels, k numbers a feature instead of k x k.
    order = np.argsort(np.where(counted, top_label, np.iinfo(np.int32).max), axis=1, kind="stable")
    share = np.take_along_axis(share, order, axis=1)
    label = np.take_along_axis(top_label, order, axis=1)
    n_features, k = share.shape
    is_new = np.ones((n_features, k), bool)
    is_new[:, 1:] = label[:, 1:] != label[:, :-1]
    class_share = np.add.reduceat(share.ravel(), np.flatnonzero(is_new.ravel())) if share.size else share.ravel()
    positive = class_share > 0
    terms = np.zeros(len(class_share))
    terms[positive] = class_share[positive] * np.log(class_share[positive])
    feature_of_class = np.repeat(np.arange(n_features), is_new.sum(axis=1))
    entropy = -np.bincount(feature_of_class, weights=terms, minlength=n_features)
    # One class is exactly 0, where rounding of its shares' sum would leave 1e-16 on one side or the other.
    entropy[np.bincount(feature_of_class[positive], minlength=n_features) <= 1] = 0.0
    entropy[n_labelled < max(min_labelled, 1)] = np.nan
    return entropy.astype(np.float32), n_labelled
