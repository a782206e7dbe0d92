"""Options of `encode` and `stats`: what they read, over which rows, where they compute."""

from dataclasses import dataclass

from ..options import option

SPLITS = ("train", "heldout", "all")
ENCODE_PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """What `encode` reads and how it runs."""

    store: str | None = option(
        "Activation store to encode in place of the run's own: another one of the same site, such as a validation set.",
        default=None,
        metavar="STORE",
    )
    split: str = option("Rows to encode.", default="all", choices=SPLITS)
    rows: int | None = option("Encode at most this many rows, the first of the split.", default=None, metavar="N")
    block_rows: int = option("Rows encoded at a time.", default=4096, metavar="N")
    tile_features: int = option(
        "Features whose pre-activations are held at a time; bounds memory at large d_sae.", default=4096, metavar="N"
    )
    precision: str = option(
        "How active features are found: in float32, or in bf16 with a margin that covers its rounding. Their values "
        "are float32 either way.",
        default="fp32",
        choices=ENCODE_PRECISIONS,
    )
    device: str = option("auto, cpu, cuda, cuda:N or mps.", default="auto")
    size_limit_gb: float = option(
        "Refuse to write more than this many GB (10^9 bytes) of features without --force.", default=50.0, metavar="GB"
    )
    force: bool = option("Write the features whatever their size.", default=False)
    overwrite: bool = option("Replace the features that the run already has.", default=False)

    def __post_init__(self) -> None:
        _check_choice("split", self.split, SPLITS)
        _check_positive("rows", self.rows)
        _check_positive("block_rows", self.block_rows)
        _check_positive("tile_features", self.tile_features)
        _check_choice("precision", self.precision, ENCODE_PRECISIONS)
        if not self.size_limit_gb > 0:
            raise ValueError(f"size_limit_gb must be above 0; got {self.size_limit_gb}")


@dataclass(frozen=True, kw_only=True)
class StatsOptions:
    """What `stats` counts, draws and where it computes."""

    split: str = option("Rows to count. The default is every row that was encoded.", default="all", choices=SPLITS)
    k: int = option("Largest values of each feature to keep, and to take label entropy over.", default=20, metavar="N")
    min_labelled: int = option(
        "Label entropy is undefined below this many firing labelled rows among those.", default=10, metavar="N"
    )
    labels: str | None = option(
        "For a dense matrix: .npy file of one integer label a row, -1 for none.", default=None, metavar="FILE"
    )
    from_store: bool = option(
        "Encode the rows of the run's store and count them at once: `thresher encode` is not needed and nothing of the "
        "features is kept. Samples, co-firing, monosemanticity and L0 without the ULD cluster take a second pass.",
        default=False,
    )
    store: str | None = option(
        "With --from-store: as for encode, another store of the same site.", default=None, metavar="STORE"
    )
    rows: int | None = option(
        "With --from-store: count at most this many rows, the first of the split.", default=None, metavar="N"
    )
    precision: str = option("With --from-store: as for encode.", default="fp32", choices=ENCODE_PRECISIONS)
    workers: int | None = option(
        "Compute in this many local processes; the default is threads of this one.", default=None, metavar="N"
    )
    scheduler: str | None = option(
        "Compute on the Dask cluster at this address (tcp://host:port).", default=None, metavar="ADDRESS"
    )
    samples: int = option(
        "Rows to keep of each feature's top, 75, 50 and 25 % quantile and of those drawn at random; 0 leaves them and "
        "the labels of all firing rows out.",
        default=8,
        metavar="N",
    )
    cofiring: int = option("Partners to keep of each feature; 0 leaves co-firing out.", default=32, metavar="N")
    cofiring_rows: int | None = option(
        "Rows to count co-firing on, evenly spaced; each process holds their features. The default is as many as have "
        "8 million activations.",
        default=None,
        metavar="N",
    )
    nearest: int = option(
        "Nearest features to keep by decoder and by encoder cosine; 0 leaves them out.", default=32, metavar="N"
    )
    null_draws: int = option(
        "Random labellings for the label entropy by chance; 0 leaves it out.", default=200, metavar="N"
    )
    embeddings: str | None = option(
        "Image embeddings for the monosemanticity score: .npy file or zarr array, one a row of the store; by default "
        "those that `embed` made.",
        default=None,
        metavar="FILE",
    )
    device: str = option("For the nearest features and --from-store: auto, cpu, cuda, cuda:N or mps.", default="auto")
    figures: bool = option("Draw the figures and contact sheets.", default=True)
    sheet_features: tuple[int, ...] = option(
        "Features to show in a contact sheet of their own; may be given several times.",
        default=(),
        flag="--feature",
        metavar="ID",
    )
    sheet_rows: int = option("Features on each contact sheet.", default=12, metavar="N")
    seed: int = option("Seed of the rows, labels and contact sheet's features drawn at random.", default=0)
    overwrite: bool = option("Replace the statistics that the run already has.", default=False)
    task_bytes: int = option("Bytes of features that one Dask task reads.", default=64_000_000, metavar="BYTES")

    def __post_init__(self) -> None:
        _check_choice("split", self.split, SPLITS)
        _check_positive("k", self.k)
        if self.k > 65535:
            raise ValueError(f"k must be at most 65535 (it is counted in 16 bits); got {self.k}")
        _check_positive("min_labelled", self.min_labelled)
        if self.min_labelled > self.k:
            raise ValueError(
                f"min_labelled must be at most k = {self.k}, or every label entropy is undefined; "
                f"got {self.min_labelled}"
            )
        _check_positive("workers", self.workers)
        if not self.from_store and (self.store is not None or self.rows is not None or self.precision != "fp32"):
            raise ValueError("store, rows and precision go with from_store: what was encoded is counted as it is")
        _check_positive("rows", self.rows)
        _check_choice("precision", self.precision, ENCODE_PRECISIONS)
        _check_positive("sheet_rows", self.sheet_rows)
        _check_positive("task_bytes", self.task_bytes)
        for name in ("samples", "cofiring", "nearest", "null_draws", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0; got {getattr(self, name)}")
        _check_positive("cofiring_rows", self.cofiring_rows)
        if self.workers is not None and self.scheduler is not None:
            raise ValueError("workers starts a local cluster and scheduler joins another: give one of the two")
        if any(f < 0 for f in self.sheet_features):
            raise ValueError(f"sheet_features are ids from 0 on; got {min(self.sheet_features)}")


def _check_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
