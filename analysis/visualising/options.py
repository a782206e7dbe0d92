"""Options of `visualise`: of which features pictures are made, and how."""

import re
from dataclasses import dataclass

from ...options import option

METHODS = ("maco", "fourier")
"""Ways to write a picture as numbers that are optimised; see `parametrise`."""
POOLINGS = ("mean", "centre")
"""How the tokens of a picture make one number, where a store has several an image."""
_LEARNING_RATES = {"maco": 0.3, "fourier": 0.02}
_WORDS = re.compile(r"named|(?:top|random):[1-9]\d{0,8}|\d{1,9}(?:-\d{1,9})?")


@dataclass(frozen=True, kw_only=True)
class VisualiseOptions:
    """Which features are shown, how their pictures are optimised, and where that runs."""

    features: str = option(
        "Which, with commas between: ids and ranges (7,100-199), named (those that `name` has named), top:N (the N "
        "with the largest activations), random:N (N that fire, drawn by --seed).",
        default="named",
        metavar="WHICH",
        heading="Pictures",
    )
    method: str = option(
        "maco moves the phases of a picture that has the spectrum of the run's own images; fourier its amplitudes too.",
        default="maco",
        choices=METHODS,
    )
    from_image: bool = option(
        "Begin with the feature's largest images, one a seed, and accentuate them.", default=False
    )
    seeds: int = option("Pictures of each feature. The one that lasts best is shown first.", default=3, metavar="N")
    canvas: int | None = option(
        "Shorter side of a picture in pixels; by default one and a half of what the tower sees.",
        default=None,
        metavar="PX",
    )
    steps: int = option("Steps of the optimiser.", default=256, metavar="N", heading="Optimisation")
    crops: int = option("Crops of the picture that the tower sees each step.", default=4, metavar="N")
    lr: float | None = option(
        "Learning rate: 0.3 of maco, in radians, and 0.02 of fourier by default.", default=None, metavar="RATE"
    )
    smoothness: float = option(
        "Weight of the picture's total variation, against grain; 0 leaves it out.", default=0.3, metavar="WEIGHT"
    )
    noise: float = option("Deviation of the noise on each crop's pixels, which go from 0 to 1.", default=0.05)
    tokens: str = option(
        "Of a store with several tokens an image: make the mean of all patches large, or the patch in the centre.",
        default="mean",
        choices=POOLINGS,
    )
    seed: int = option("Of what is random.", default=0)
    images: str | None = option(
        "Where the images are now, if moved.", default=None, metavar="IMAGES", heading="Running"
    )
    device: str = option("auto, cpu, cuda, cuda:N or mps.", default="auto")
    batch_size: int = option("Crops that pass through the tower together.", default=32, metavar="N")
    workers: int | None = option(
        "Decoding processes; by default as many as a harvest takes.", default=None, metavar="N"
    )
    overwrite: bool = option(
        "Make pictures that are there again, and remove those made with other options.", default=False
    )

    def __post_init__(self) -> None:
        for name, allowed in (("method", METHODS), ("tokens", POOLINGS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is one of {', '.join(allowed)}.")
        for name, least in (("seeds", 1), ("steps", 1), ("crops", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least {least}.")
        if self.seed >= 1 << 63:
            raise ValueError(f"seed is {self.seed}; it is below 2^63.")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise ValueError(f"lr is {self.lr}; it is above 0.")
        for name, value in (("noise", self.noise), ("smoothness", self.smoothness)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it is from 0 to 1.")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers is {self.workers}; it is at least 0.")
        for word in self.feature_words:
            if not _WORDS.fullmatch(word):
                raise ValueError(
                    f"features {word!r} is none of an id (7), a range (100-199), named, top:N and random:N."
                )

    @property
    def feature_words(self) -> list[str]:
        """The parts of `features`."""
        return [word.strip() for word in self.features.split(",")]

    @property
    def rate(self) -> float:
        """The learning rate, resolved."""
        return _LEARNING_RATES[self.method] if self.lr is None else self.lr
