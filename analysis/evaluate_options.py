"""Options of `evaluate`: which images, which texts, which protocol."""

from dataclasses import dataclass

from ..options import option

TEMPLATES = ("none", "simple", "openai")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What `evaluate` compares, on which images."""

    n_images: int | None = option(
        "Evaluate on at most this many images, drawn as evenly over the classes as they allow; all by default.",
        default=None,
        metavar="N",
    )
    caption: str = option("Caption of a class; {} stands for its name.", default="A photo of a {}.", metavar="TEXT")
    templates: str = option(
        "For zero-shot, compare with the mean text embedding of open_clip's 7 (simple) or 80 (openai) templates in "
        "place of the caption's.",
        default="none",
        choices=TEMPLATES,
    )
    batch_size: int | None = option(
        "Images in a contrastive batch; by default 1000, or the number of classes where there are fewer (1024 with "
        "--repeat-captions).",
        default=None,
        metavar="N",
    )
    repeat_captions: bool = option(
        "The post's protocol: batches of 1024 in which captions repeat, which puts a floor under the loss.",
        default=False,
    )
    explain: bool = option(
        "Also take apart why the SAE raises or lowers the loss: with and without repeated captions, with its error "
        "added back, with a random error of the same size, on training images, at the best logit scale.",
        default=False,
    )
    label_names: str | None = option("File of class names, as for harvest.", default=None, metavar="FILE")
    store: str | None = option("Where the run's store is now.", default=None, metavar="STORE")
    device: str = option("auto, cpu, cuda, cuda:N or mps.", default="auto")
    images_at_once: int = option("Images that pass through the tower together.", default=64, metavar="N")
    seed: int = option("Seed of the sample, the batches and the intervals.", default=0)
    overwrite: bool = option("Replace what an earlier one wrote to RUN.", default=False)

    def __post_init__(self) -> None:
        if self.n_images is not None and self.n_images < 2:
            raise ValueError(f"n_images must be at least 2, to be told apart; got {self.n_images}")
        if self.images_at_once < 1:
            raise ValueError(f"images_at_once must be at least 1; got {self.images_at_once}")
        if self.batch_size is not None and self.batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2, since a batch of one loses nothing; got {self.batch_size}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0; got {self.seed}")
        if self.templates not in TEMPLATES:
            raise ValueError(f"templates must be one of {', '.join(TEMPLATES)}; got {self.templates!r}")
        if self.caption.count("{}") != 1:
            raise ValueError(f"caption {self.caption!r} must hold {{}} once, where the class's name goes")
