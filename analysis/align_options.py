"""Options of `align`: what features are held against, how chance is drawn, which images neurons are shown by."""

from dataclasses import dataclass

from ..options import option

SIGNS = ("positive", "both")


@dataclass(frozen=True, kw_only=True)
class AlignOptions:
    """What `align` compares, draws and where it computes."""

    store: str | None = option(
        "Where the run's activation store is now; by default where it was.", default=None, metavar="STORE"
    )
    neurons: str | None = option(
        "Store of the block's mlp_act on the same images in the same order, for the neurons' largest images; by "
        "default the run's own store, where it holds that site.",
        default=None,
        metavar="STORE",
    )
    project: bool = option(
        "Also find neurons' largest images by projecting the stored rows onto their output vectors, as the post did.",
        default=False,
    )
    signs: str = option(
        "Whether a neuron's images are those where it is most positive, or both ends count, as two units.",
        default="positive",
        choices=SIGNS,
    )
    decoder: bool = option("Align the decoder vectors too.", default=False)
    other_blocks: bool = option("Hold features against earlier blocks and against attention too.", default=True)
    fdr: float = option("False discovery rate at which aligned features are counted.", default=0.05, metavar="Q")
    chance_quantile: float = option(
        "Quantile of a random direction's largest cosine above which a neuron counts as aligned.",
        default=0.99,
        metavar="Q",
    )
    null_directions: int | None = option(
        "Random directions of each kind; by default as many as features, and 16,384 at least.",
        default=None,
        metavar="N",
    )
    covariance_rows: int = option(
        "Rows that the covariance of the activations is taken over, drawn at random.", default=65536, metavar="N"
    )
    seed: int = option("Seed of the random directions, the drawn rows and the bootstrap.", default=0)
    workers: int | None = option(
        "Count neurons in this many local processes; the default is threads of this one.", default=None, metavar="N"
    )
    scheduler: str | None = option(
        "Count neurons on the Dask cluster at this address (tcp://host:port).", default=None, metavar="ADDRESS"
    )
    device: str = option("Where cosines are computed: auto, cpu, cuda, cuda:N or mps.", default="auto")
    figures: bool = option("Draw the figures.", default=True)
    overwrite: bool = option("Replace the alignment that the run already has.", default=False)
    task_bytes: int = option(
        "Bytes of neuron activations that one Dask task reads.", default=64_000_000, metavar="BYTES"
    )

    def __post_init__(self) -> None:
        if self.signs not in SIGNS:
            raise ValueError(f"signs must be one of {', '.join(SIGNS)}; got {self.signs!r}")
        for name in ("fdr", "chance_quantile"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1; got {getattr(self, name)}")
        for name in ("null_directions", "covariance_rows", "workers", "task_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if self.covariance_rows < 2:
            raise ValueError("covariance_rows must be at least 2, since one row has no covariance; got 1")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more; got {self.seed}")
        if self.workers is not None and self.scheduler is not None:
            raise ValueError("workers starts a local cluster and scheduler joins another: give one of the two")
