"""The options of `harvest`."""

import os
from dataclasses import dataclass

from ..options import option
from ..store.format import CODECS, DTYPES, ROWS_PER_CHUNK, SITES, TOKENS

_PRECISIONS = ("fp32", "bf16", "fp16")
_ORDERS = ("random", "source")
_THUMBNAILS = ("auto", "on", "off")


def _default_workers() -> int:
    # One core is left to the tower's own thread; past 16 processes a disk is the limit, not the decoder.
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, n_cores - 1))


@dataclass(frozen=True, kw_only=True)
class HarvestOptions:
    """What `harvest` reads the activations of, how, and in which form it stores them."""

    model: str = option(
        "open_clip model name, the path of an open_clip model config (JSON file or folder), or `quickstart`.",
        default="ViT-L-14-quickgelu",
        metavar="NAME|PATH",
    )
    pretrained: str | None = option(
        "open_clip tag, checkpoint path, or `none` for random weights drawn from --seed. "
        "Left out: `openai` for a model name, the folder's own checkpoint for a folder.",
        default=None,
        metavar="TAG|PATH|none",
    )
    allow_activation_mismatch: bool = option(
        "Use the model's activation function even where the weights were trained with the other one (QuickGELU, GELU).",
        default=False,
    )
    layer: tuple[int, ...] = option(
        "Residual block to read, 0-based: 22 is the 23rd block. Repeat it for several layers in one pass.",
        default=(22,),
    )
    site: tuple[str, ...] = option(
        "Where in the block the vector is read: its output or input (resid_post, resid_pre), what its MLP or its "
        "attention adds to the residual stream (mlp_out, attn_out), its MLP's neurons (mlp_act). Repeatable.",
        default=("resid_post",),
        choices=SITES,
    )
    token: str = option(
        "Which tokens' vectors are stored: the class token, every patch, the patches' mean, or class token and patches "
        "(all). `patch` and `all` make many rows of an image: 256 and 257 for ViT-L/14.",
        default="cls",
        choices=TOKENS,
    )
    dtype: str = option("Number format of the stored activations.", default="float16", choices=tuple(DTYPES))
    precision: str = option(
        "Arithmetic of the tower. The row error of bf16 and fp16 against fp32 is measured and recorded.",
        default="fp32",
        choices=_PRECISIONS,
    )
    batch_size: int = option("Images a forward pass.", default=64)
    workers: int = option(
        "Processes that decode images, shared out among the processes of a torchrun on this machine; 0 decodes in the "
        "main process. By default the cores less one, at most 16.",
        default_factory=_default_workers,
    )
    device: str = option(
        "Where the tower runs: auto, cpu, cuda, cuda:N or mps; auto takes cuda, then mps, then cpu. Under torchrun, "
        "auto and cuda give each process a GPU of its own.",
        default="auto",
    )
    limit: int | None = option(
        "Harvest this many images only: a seeded random sample, or the first ones with --order source.", default=None
    )
    order: str = option(
        "Order of the stored rows. Training reads a store in random order several times faster.",
        default="random",
        choices=_ORDERS,
    )
    seed: int = option("Seed of the row order, of --limit's sample and of random weights.", default=0)
    codec: str = option(
        "Compression of the activation chunks. zstd was measured to save 7 to 10 % of float16 and float32 rows, 21 to "
        "23 % of bfloat16; on a disk, rows without a codec are read faster.",
        default="none",
        choices=CODECS,
    )
    rows_per_chunk: int = option(
        "Rows a chunk. As many images are written together: a killed harvest loses those in hand, and with them those "
        "that are being written.",
        default=ROWS_PER_CHUNK,
    )
    thumbnails: str = option(
        "Store a WebP thumbnail of each image, 128 px; auto does so up to 8 GB of them (about two million images).",
        default="auto",
        choices=_THUMBNAILS,
    )
    label_names: str | None = option(
        "File of class names: a line a class in class order, lines `folder<TAB>name`, or JSON.",
        default=None,
        metavar="FILE",
    )
    strict: bool = option("Stop at the first unreadable image instead of storing an invalid row for it.", default=False)
    overwrite: bool = option("Replace what stands at STORE.", default=False)
    append: bool = option(
        "Add the images to a finished STORE, as a further part of it: same tower, layers, sites, token and number "
        "format, other images.",
        default=False,
    )
    profile: bool = option("Say at the end what the harvest waited for, stage by stage.", default=False)

    def __post_init__(self) -> None:
        choices = {
            "token": TOKENS,
            "dtype": tuple(DTYPES),
            "precision": _PRECISIONS,
            "order": _ORDERS,
            "codec": CODECS,
            "thumbnails": _THUMBNAILS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is one of {', '.join(allowed)}.")
        for name, least in (("batch_size", 1), ("workers", 0), ("rows_per_chunk", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least {least}.")
        if self.seed >= 1 << 63:
            raise ValueError(f"seed is {self.seed}; it is below 2^63.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}; it is at least 1.")
        if not self.layer:
            raise ValueError("no layer is given; name at least one, such as --layer 22.")
        if len(set(self.layer)) != len(self.layer):
            raise ValueError(f"layer {self.layer} names a layer twice.")
        if not self.site:
            raise ValueError("no site is given; name at least one, such as --site resid_post.")
        for site in self.site:
            if site not in SITES:
                raise ValueError(f"site is {site!r}; it is one of {', '.join(SITES)}.")
        if len(set(self.site)) != len(self.site):
            raise ValueError(f"site {self.site} names a site twice.")
        if self.append and self.overwrite:
            raise ValueError("append adds to the store that overwrite would replace: give one of them.")
