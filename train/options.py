"""The options of `train`: what one SAE is, how it is optimised, what is written on the way."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from ..options import option

VARIANTS = ("topk", "relu")
B_DEC_INITS = ("zero", "mean", "geometric-median")
ENCODER_INITS = ("transpose", "independent")
NORMALISATIONS = ("none", "standardize", "expected-norm")
PRECISIONS = ("fp32", "bf16")

VARIANT_OF = {"l1": "relu", "ghost_grads": "relu", "k": "topk", "aux": "topk", "aux_k": "topk"}
"""The options that one variant alone has, and which."""

# What may differ between a run and its resumption: nothing here changes a weight. (Another device changes their last
# bits, as another machine does.)
FREE_ON_RESUME = frozenset(
    {"device", "loader_memory", "overwrite", "checkpoint_every", "log_every", "eval_every", "eval_rows"}
)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How one SAE is trained. The defaults are a TopK SAE for a tower of width about 1024.

    `recipes.resolve_options` lays the options a user gave over a named recipe.
    """

    recipe: str | None = option("Named settings; options given beside it win.", default=None, choices=("post-2024",))
    layer: int | None = option("Layer (0-based) to train on, when the store holds several.", default=None)
    site: str | None = option("Site to train on, when the store holds several.", default=None)
    token: str | None = option(
        "Token that the store must hold; a store holds one kind, so this only checks.", default=None
    )
    variant: str = option("Kind of SAE.", default="topk", choices=VARIANTS)
    expansion: float = option("Features per input dimension: d_sae = expansion x d_in.", default=16.0)
    l1: float = option("Coefficient of the L1 penalty (variant relu).", default=8e-5)
    k: int = option("Features kept a row (variant topk).", default=32)
    lr: float = option("Peak learning rate of Adam.", default=4e-4)
    warmup: int = option("Steps of linear warm-up.", default=500)
    decay: float = option("Share of the run, at its end, over which the rate falls linearly to zero.", default=0.2)
    batch_size: int = option("Rows a step.", default=1024)
    rows: int = option("Training rows, counted with repeats; rounded down to whole batches.", default=2_621_440)
    seed: int = option("Seed of the initial weights and of the order of the rows.", default=0)
    b_dec_init: str = option("Where the decoder bias starts.", default="mean", choices=B_DEC_INITS)
    encoder_init: str = option(
        "Encoder at the decoder's transpose, or drawn independently of it.", default="transpose", choices=ENCODER_INITS
    )
    normalize: str = option(
        "Scaling of the input, part of the SAE: each coordinate to mean 0 and deviation 1, or the mean norm to "
        "sqrt(d_in).",
        default="standardize",
        choices=NORMALISATIONS,
    )
    ghost_grads: bool = option(
        "Give dead features ghost gradients (variant relu).", default=False, flag="--ghost-grads/--no-ghost-grads"
    )
    aux: float = option("Coefficient of the AuxK loss of dead features (variant topk); 0 for none.", default=1 / 32)
    aux_k: int | None = option(
        "Dead features that AuxK uses a row; by default the power of two nearest d_in / 2.", default=None
    )
    dead_after_rows: int = option("A feature that did not fire on more rows than this is dead.", default=65_536)
    precision: str = option(
        "Precision of the matmul inputs; weights and Adam stay fp32.", default="fp32", choices=PRECISIONS
    )
    device: str = option("auto, cpu, cuda, cuda:N or mps.", default="auto")
    checkpoint_every: int = option("Steps between checkpoints; 0 for none but on a stop.", default=500)
    log_every: int = option("Steps between logged training metrics.", default=20)
    eval_every: int = option("Steps between evaluations on held-out rows; 0 for the end only.", default=500)
    eval_rows: int = option("Most held-out rows to evaluate on; 0 for all.", default=16_384)
    loader_memory: float = option(
        "Memory, in GB, to mix the rows of a store that is not in random order, or is compressed or in a bucket.",
        default=1.0,
    )
    overwrite: bool = option("Replace an existing run.", default=False)

    def __post_init__(self) -> None:
        self._check_choices()
        for name in ("rows", "batch_size", "k", "log_every", "dead_after_rows"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in ("warmup", "checkpoint_every", "eval_every", "eval_rows", "seed", "l1", "aux"):
            _require(0 <= getattr(self, name) < float("inf"), name, getattr(self, name), "must be 0 or more")
        for name in ("expansion", "lr", "loader_memory"):
            _require(0 < getattr(self, name) < float("inf"), name, getattr(self, name), "must be above 0, and finite")
        _require(self.seed < 1 << 63, "seed", self.seed, "must be below 2^63")
        _require(0 <= self.decay <= 1, "decay", self.decay, "is a share of the run, from 0 to 1")
        _require(self.aux_k is None or self.aux_k >= 1, "aux_k", self.aux_k, "must be at least 1")
        _require(self.layer is None or self.layer >= 0, "layer", self.layer, "is 0-based and must be 0 or more")
        _require(
            self.rows >= self.batch_size,
            "rows",
            self.rows,
            f"is less than one batch of {self.batch_size}",
        )
        _require(
            not (self.ghost_grads and self.variant != "relu"),
            "ghost_grads",
            self.ghost_grads,
            f"is for variant relu; variant {self.variant} revives dead features with --aux",
        )

    def _check_choices(self) -> None:
        for field in fields(self):
            choices, value = field.metadata["choices"], getattr(self, field.name)
            if choices and value is not None:
                _require(value in choices, field.name, value, f"must be one of {', '.join(choices)}")

    @property
    def steps(self) -> int:
        """Optimiser steps: whole batches in `rows`."""
        return self.rows // self.batch_size

    def d_sae(self, d_in: int) -> int:
        """Features of an SAE of `d_in` inputs; `ValueError` where none or fewer than `k` would be left."""
        d_sae = round(self.expansion * d_in)
        _require(d_sae >= 1, "expansion", self.expansion, f"leaves no feature at d_in = {d_in}")
        if self.variant == "topk":
            _require(self.k <= d_sae, "k", self.k, f"exceeds the {d_sae} features (d_in {d_in} x --expansion)")
        return d_sae

    def resolved_aux_k(self, d_in: int) -> int:
        """Dead features that AuxK uses a row: as given, or Gao et al.'s power of two nearest d_in / 2."""
        return self.aux_k or 2 ** max(0, round_log2(d_in / 2))

    def to_json(self) -> dict[str, Any]:
        """Every option by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "TrainOptions":
        """Options as `to_json` wrote them; `ValueError` names an unknown one."""
        unknown = sorted(set(record) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown training option {unknown[0]!r}: written by another version of thresher")
        return cls(**record)


def round_log2(value: float) -> int:
    """The whole number nearest log2(value), for value >= 0.5."""
    from math import log2

    return round(log2(value)) if value >= 0.5 else 0


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ValueError(f"--{name.replace('_', '-')} {value} {rule}")
