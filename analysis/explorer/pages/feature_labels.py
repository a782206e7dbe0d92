"""Which labels a feature fires on, over all its firing rows."""

from dataclasses import dataclass

import numpy as np

from ..runs import ExploredRun


@dataclass(frozen=True)
class LabelRow:
    """One label of a feature."""

    label: int
    name: str
    share: float
    """Of the feature's activation on labelled rows; NaN where that is 0."""
    count: int
    """Rows with the label on which the feature fires."""
    share_of_label: float
    """Those rows as a share of all rows with the label."""


@dataclass(frozen=True)
class LabelTable:
    """Every label of a feature, by falling share."""

    n_labelled: int
    """Firing rows with a label."""
    entropy: float
    """In nats, over all of them; NaN where undefined."""
    effective_n: float
    rows: list[LabelRow]


def label_table(run: ExploredRun, feature: int) -> LabelTable:
    """The labels of all rows on which a feature fires.

    Of equal shares the label on more rows comes first, then the lower number.
    """
    first, last = run.array("labels/indptr")[feature : feature + 2].tolist()
    label, count, total = (run.array(f"labels/{name}")[first:last] for name in ("label", "count", "sum"))
    order = np.lexsort((label, -count.astype(np.int64), -total))
    label, count, total = label[order], count[order], total[order]
    s = run.stored.statistics
    n_rows = s.label_rows[np.searchsorted(s.label_ids, label)]
    whole = float(total.sum())
    shares = total / whole if whole > 0 else np.full(len(total), np.nan)
    columns = (label.tolist(), shares.tolist(), count.tolist(), (count / n_rows).tolist())
    return LabelTable(
        n_labelled=int(run.array("labels/n_labelled")[feature]),
        entropy=abs(float(run.array("labels/entropy")[feature])),  # of one label it is -0.0
        effective_n=float(run.array("labels/effective_n")[feature]),
        rows=[
            LabelRow(label, run.label_name(label), share, count, share_of_label)
            for label, share, count, share_of_label in zip(*columns, strict=True)
        ],
    )
