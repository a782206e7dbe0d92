"""Options of `name --calibrate`: what is known of the images, and how it is read."""

from dataclasses import dataclass
from pathlib import Path

from ...options import option


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """The table of attributes that names are held to, and a run that has learnt nothing."""

    calibrate: str | None = option(
        "Write no names, and measure instead how often each method's names are right by the attributes in this CSV (a "
        "line for each image, as `thresher attributes` reads it; quickstart stands for the built-in pictures' own).",
        default=None,
        metavar="CSV",
        heading="Calibration",
    )
    untrained: Path | None = option(  # noqa: RUF009 (it declares a field)
        "Encoded run on a tower with random weights, of the same images, to compare with.", default=None, metavar="RUN"
    )
    key: str | None = option(
        "Column of the images' keys, as in the store; by default `key`, `path` or else the first.",
        default=None,
        metavar="COLUMN",
    )
    group: str | None = option(
        "Column that says what an image belongs to: all images of a group are on the same side of the split.",
        default=None,
        metavar="COLUMN",
    )
    separator: str = option("What separates several values in a cell.", default="|", metavar="TEXT", is_text=True)
    min_f1: float = option(
        "Calibrate on features that know an attribute at this F1, on the naming side.", default=0.5, metavar="F1"
    )

    def __post_init__(self) -> None:
        if self.calibrate is None and (self.untrained or self.key or self.group):
            raise ValueError("untrained, key and group go with calibrate")
        if self.calibrate == "quickstart" and (self.key or self.group):
            raise ValueError("key and group are columns of a CSV file: quickstart has its own")
        if not self.separator:
            raise ValueError("separator must not be empty")
        if not 0 < self.min_f1 <= 1:
            raise ValueError(f"min_f1 must be above 0 and at most 1; got {self.min_f1}")
