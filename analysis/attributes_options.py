"""Options of `attributes`: how its table is read, what the features are held against, on how many images."""

from dataclasses import dataclass
from pathlib import Path

from ..options import option


@dataclass(frozen=True, kw_only=True)
class AttributesOptions:
    """What `attributes` reads and compares."""

    key: str | None = option(
        "Column of the images' keys, as in the store; by default `key`, `path` or else the first.",
        default=None,
        metavar="COLUMN",
    )
    group: str | None = option(
        "Column that says what an image belongs to, such as its photographer: all images of a group are on the same "
        "side of the split.",
        default=None,
        metavar="COLUMN",
    )
    separator: str = option("What separates several values in a cell.", default="|", metavar="TEXT", is_text=True)
    untrained: Path | None = option(  # noqa: RUF009 (it declares a field)
        "Encoded run on a tower with random weights, of the same images, to compare with.", default=None, metavar="RUN"
    )
    neurons: str | None = option(
        "Store of the block's MLP neurons (site mlp_act) on the same images, to compare with.",
        default=None,
        metavar="STORE",
    )
    store: str | None = option(
        "Where the encoded activation store is now; by default where it was.", default=None, metavar="STORE"
    )
    rows: int = option("Score on at most this many images, drawn at random.", default=50_000, metavar="N")
    min_rows: int = option("Leave out attributes of fewer images.", default=40, metavar="N")
    max_share: float = option("Leave out attributes of more than this share of the images.", default=0.6, metavar="S")
    resamples: int = option("Bootstrap resamples of the groups, for the intervals.", default=1000, metavar="N")
    seed: int = option("Seed of the split, the drawn images, the random dictionary and the bootstrap.", default=0)
    overwrite: bool = option("Replace the attributes that the run already has.", default=False)

    def __post_init__(self) -> None:
        for name in ("rows", "min_rows", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not 0 < self.max_share <= 1:
            raise ValueError(f"max_share must be above 0 and at most 1; got {self.max_share}")
        if not self.separator:
            raise ValueError("separator must not be empty")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more; got {self.seed}")
