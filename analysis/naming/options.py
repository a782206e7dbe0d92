"""Options of `name`: by which directions, from which phrases, on which rows features are named."""

import math
from dataclasses import dataclass

from ...options import option

METHODS = ("causal", "added", "lens", "data", "post", "dncbm")
SOURCES = ("labels", "captions", "classes", "nouns")
TEMPLATES = ("none", "simple", "openai")
UNCENTRED = {"post": "caption", "dncbm": "none"}
"""Older methods, kept as they were: the nearest text as CLIP embeds it, of these templates, is the name."""


@dataclass(frozen=True, kw_only=True)
class NameOptions:
    """How features are named and how the names are scored."""

    method: str = option(
        "Direction of a feature in CLIP's space: data (embeddings of its images), causal (what taking it out changes "
        "in them), added (what adding it changes in others), lens (its decoder vector through the tower's head), post "
        "(the post's), dncbm (Discover-then-Name's).",
        default="data",
        choices=METHODS,
        heading="Names",
    )
    features: str | None = option(
        "Which, as 7,12,100-199; by default all that fire on enough rows.", default=None, metavar="IDS"
    )
    sparse_names: bool = option("Names of several phrases where one does not say it all.", default=False)
    vocab: str | None = option("File of phrases, one a line, in UTF-8.", default=None, metavar="FILE")
    vocabulary: str | None = option(
        "Where other phrases come from, with commas: labels and captions of the run's images, classes (ImageNet's "
        "names), nouns (English). All four by default (the first two of the quickstart model, whose text tower has "
        "read no more); none beside --vocab.",
        default=None,
        metavar="SOURCES",
    )
    templates: str | None = option(
        "Embed a phrase as it is (none), or as the mean over open_clip's 7 (simple) or 80 (openai) templates; by "
        "default simple, and of post and dncbm their own.",
        default=None,
        choices=TEMPLATES,
    )
    naming_rows: int = option("Largest images that a name is found by.", default=20, metavar="N", heading="Images")
    scoring_rows: int = option("Other images on which it fires that a name is scored on.", default=50, metavar="N")
    fewest_rows: int = option(
        "A feature that fires on fewer images to find a name by, or to score it on, stays untested.",
        default=10,
        metavar="N",
    )
    images: str | None = option("Where the images are now, if moved.", default=None, metavar="IMAGES")
    store: str | None = option("Where the run's activation store is now, if moved.", default=None, metavar="STORE")
    choose: str | None = option(
        "The name is the phrase nearest to the direction, or the best scored of the candidates; by default nearest of "
        "data, post and dncbm, score of the others.",
        default=None,
        choices=("nearest", "score"),
        heading="Scores",
    )
    candidates: int = option("Nearest phrases of which the best scored is taken.", default=50, metavar="N")
    # about the loosest thresholds that leave names of other features, and of an untrained tower, unnamed: of the names
    # as many are right as at 0.7 and 2, and half as many again are given (`name --calibrate quickstart`)
    min_auroc: float = option("Below this AUROC a feature is unnamed.", default=0.65)
    min_z: float = option("Below this z of the ablation score a feature is unnamed.", default=1.0)
    fdr: float = option("False discovery rate over features, above which one is unnamed.", default=0.05, metavar="Q")
    seed: int = option("Seed of the split, of the images drawn and of the random phrases.", default=0)
    device: str = option("auto, cpu, cuda, cuda:N or mps.", default="auto", heading="Running")
    batch_size: int = option("Images that pass through the tower together.", default=64, metavar="N")
    workers: int | None = option(
        "Decoding processes; by default as many as a harvest takes.", default=None, metavar="N"
    )
    overwrite: bool = option("Replace the names that the run already has.", default=False)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}")
        if self.templates not in (None, *TEMPLATES):
            raise ValueError(f"templates must be one of {', '.join(TEMPLATES)}; got {self.templates!r}")
        if self.choose not in (None, "nearest", "score"):
            raise ValueError(f"choose must be nearest or score; got {self.choose!r}")
        if self.method in UNCENTRED and (self.sparse_names or self.choose == "score"):
            raise ValueError(
                f"{self.method} takes the nearest phrase: sparse_names and choose score go with the others"
            )
        if unknown := [source for source in self.sources if source not in SOURCES]:
            raise ValueError(f"vocabulary {unknown[0]!r} is none of {', '.join(SOURCES)}")
        for name in ("naming_rows", "scoring_rows", "candidates", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.fewest_rows < 2:
            raise ValueError(f"fewest_rows must be at least 2, to tell a mean from chance; got {self.fewest_rows}")
        for name in ("min_auroc", "fdr"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1; got {getattr(self, name)}")
        if not math.isfinite(self.min_z):
            raise ValueError(f"min_z must be a finite number; got {self.min_z}")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed must be 0 or more, below 2^63; got {self.seed}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must be at least 0; got {self.workers}")

    @property
    def templates_used(self) -> str:
        """The templates, resolved; `caption` is the post's."""
        return self.templates or UNCENTRED.get(self.method, "simple")

    @property
    def is_rescored(self) -> bool:
        """Whether the name is the best scored of the candidates.

        By default as calibration on pictures with known attributes found it better: of embeddings of a feature's images
        the nearest phrase is right more often, of what a feature changes the best scored.
        """
        return self.choose == "score" if self.choose else self.method in ("causal", "added", "lens")

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of phrases beside the file."""
        if self.vocabulary is None:
            return () if self.vocab is not None else SOURCES
        return tuple(dict.fromkeys(word.strip() for word in self.vocabulary.split(",") if word.strip()))
