"""The options of `train`: what one SAE is, how it is optimised, what is written on the way."""

import os
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args, get_type_hints

from ..options import option
from ..store.objects import is_url

VARIANTS = ("topk", "relu", "batchtopk", "matryoshka", "jumprelu", "gated")
ERRORS = ("normalized", "mse")
SCHEDULES = ("linear", "cosine", "constant")
DEAD_REMEDIES = ("none", "ghost", "auxk", "preact", "resample")
B_DEC_INITS = ("zero", "mean", "geometric-median")
ENCODER_INITS = ("transpose", "independent")
NORMALISATIONS = ("none", "standardize", "expected-norm", "layer-norm")
PRECISIONS = ("fp32", "tf32", "bf16")

CAPTION = "A photo of a {}."
"""The post's caption of a class."""

_TOPK, _PENALISED = ("topk", "batchtopk", "matryoshka"), ("relu", "gated", "jumprelu")
VARIANTS_OF = {
    "k": _TOPK,
    "groups": ("matryoshka",),
    "l1": ("relu", "gated"),
    "l0_penalty": ("jumprelu",),
    "target_l0": _PENALISED,
    "sparsity_warmup": _PENALISED,
    "decoder_norm": ("relu",),
    "bandwidth": ("jumprelu",),
    "initial_threshold": ("jumprelu",),
}
"""The variants that have an option, of those that not all have."""

REMEDIES_OF = {"aux": ("auxk", "preact"), "aux_k": ("auxk",), "resample_every": ("resample",)}
"""The remedies for dead features that have an option."""

# What a variant's paper does, where the user does not say.
_USUAL_ERROR = {"relu": "normalized"}
_USUAL_AUX = {"auxk": 1 / 32, "preact": 3e-6}  # Gao et al. 2024; Conerly et al. 2025, whose loss is a sum over features
# An L0 near 30, TopK's default, on rows of the embedded tower (layer 4, class token, 192 inputs, 768 features, 1,200
# steps of 512 rows at 1e-3, each coordinate standardised). The post's 8e-5 is for rows that are not, and another error.
_USUAL_COEFFICIENT = {"relu": 7e-4, "gated": 2e-2, "jumprelu": 2e-3}
_USUAL_REMEDY = {"topk": "auxk", "batchtopk": "auxk", "matryoshka": "auxk", "jumprelu": "preact", "gated": "resample"}

# What may differ between a run and its resumption: nothing here changes a weight. (Another device or size of parts
# changes their last bits, as another machine or number of processes does.)
FREE_ON_RESUME = frozenset(
    {
        *("images", "images_rows", "images_memory", "caption"),
        *("device", "loader_memory", "overwrite", "checkpoint_every", "log_every", "eval_every", "eval_rows"),
        *("micro_batch_size", "tensorboard", "wandb"),
    }
)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How one SAE is trained. The defaults are a TopK SAE for a tower of width about 1024.

    The penalties' coefficients are each variant's own, measured on rows of the embedded tower to give an L0 near 30; on
    other rows `target_l0` finds what they should be.

    `recipes.resolve_options` lays the options a user gave over a named recipe.
    """

    recipe: str | None = option(
        "Named settings; options given beside it win.", default=None, choices=("post-2024",), heading="What is read"
    )
    layer: int | None = option("Layer (0-based) to train on, when the store holds several.", default=None)
    site: str | None = option("Site to train on, when the store holds several.", default=None)
    token: str | None = option(
        "Token that the store must hold; a store holds one kind, so this only checks.", default=None
    )
    to_layer: int | None = option(
        "Layer (0-based) to reconstruct in place of the one read: a transcoder.", default=None
    )
    to_site: str | None = option("Site to reconstruct in place of the one read: a transcoder.", default=None)
    variant: str = option("Kind of SAE.", default="topk", choices=VARIANTS, heading="What it is")
    expansion: float = option("Features per input dimension: d_sae = expansion x d_in.", default=16.0)
    normalize: str = option(
        "Scaling of the input, part of the SAE: each coordinate to mean 0 and deviation 1; the mean norm to "
        "sqrt(d_in); or each row to mean 0 and deviation 1.",
        default="standardize",
        choices=NORMALISATIONS,
    )
    b_dec_init: str = option("Where the decoder bias starts.", default="mean", choices=B_DEC_INITS)
    encoder_init: str = option(
        "Encoder at the decoder's transpose, times what reconstructs a sample best (relu, gated, jumprelu: times "
        "d_in / d_sae), or drawn independently of it, as a transcoder's always is.",
        default="transpose",
        choices=ENCODER_INITS,
    )
    error: str | None = option(
        "Reconstruction error: squared, or squared over the row's norm as in the post; by default that of the post "
        "for relu.",
        default=None,
        choices=ERRORS,
    )
    k: int = option(
        "Features kept a row (topk), or as a mean over a batch (batchtopk, matryoshka).", default=32, heading="Sparsity"
    )
    groups: int = option(
        "Nested prefixes (variant matryoshka): each is twice as long as the one before, the last has all features.",
        default=5,
    )
    l1: float | None = option(
        f"Coefficient of the L1 penalty; by default {_USUAL_COEFFICIENT['relu']:g} for relu, "
        f"{_USUAL_COEFFICIENT['gated']:g} for gated.",
        default=None,
    )
    l0_penalty: float | None = option(
        f"Coefficient of the L0 penalty (variant jumprelu), by default {_USUAL_COEFFICIENT['jumprelu']:g}.",
        default=None,
    )
    target_l0: float | None = option(
        "Mean L0 to hold by adapting the penalty's coefficient, which then only starts as given (variants relu, gated, "
        "jumprelu).",
        default=None,
    )
    sparsity_warmup: int = option("Steps over which the penalty's coefficient rises from 0.", default=0)
    decoder_norm: bool = option(
        "Weigh each feature's L1 by the norm of its decoder row, which then is free (variant relu).", default=False
    )
    bandwidth: float = option("Width of the kernel that trains thresholds (variant jumprelu).", default=0.2)
    initial_threshold: float = option("Where thresholds start (variant jumprelu).", default=0.2)
    dead_remedy: str | None = option(
        "What revives dead features: the post's ghost gradients, AuxK, JumpReLU's pre-activation loss, Anthropic's "
        "resampling; by default that of the variant's paper (relu: none).",
        default=None,
        choices=DEAD_REMEDIES,
        heading="Dead features",
    )
    dead_after_rows: int = option("A feature that did not fire on more rows than this is dead.", default=65_536)
    aux: float | None = option(
        "Coefficient of AuxK, by default 1/32, or of the pre-activation loss, by default 3e-6.", default=None
    )
    aux_k: int | None = option(
        "Dead features that AuxK uses a row; by default the power of two nearest d_in / 2.", default=None
    )
    resample_every: int = option("Steps between resamplings (--dead-remedy resample).", default=2500)
    lr: float = option("Peak learning rate of Adam.", default=4e-4, heading="Optimiser")
    warmup: int = option("Steps of linear warm-up.", default=500)
    schedule: str = option("How the rate falls over the last --decay of the run.", default="linear", choices=SCHEDULES)
    decay: float = option("Share of the run, at its end, over which the rate falls to zero.", default=0.2)
    beta1: float = option("Adam's decay of the mean gradient.", default=0.9)
    beta2: float = option("Adam's decay of the mean squared gradient.", default=0.999)
    weight_decay: float = option("Weight decay: above 0 the optimiser is AdamW.", default=0.0)
    clip_norm: float = option("Norm that the gradients are scaled down to; 0 for never.", default=0.0)
    micro_batch_size: int | None = option(
        "Rows taken at once: a step adds up the gradients of its batch, the same at any size. By default as many as "
        "256 MB of pre-activations hold.",
        default=None,
    )
    precision: str = option(
        "Precision of the matmul inputs, tf32 on CUDA only; weights and Adam stay fp32.",
        default="fp32",
        choices=PRECISIONS,
    )
    device: str = option("auto, cpu, cuda, cuda:N or mps.", default="auto")
    rows: int = option(
        "Training rows, counted with repeats; rounded down to whole batches.",
        default=2_621_440,
        heading="Stream of rows",
    )
    batch_size: int = option("Rows a step.", default=1024)
    seed: int = option(
        "Seed of the initial weights, and of the order of the rows unless --order-seed is given; of several, the first "
        "orders the rows for all.",
        default=0,
    )
    order_seed: int | None = option("Seed of the order of the rows.", default=None)
    loader_memory: float = option(
        "Memory, in GB, to mix the rows of a store that is not in random order, or is compressed or in a bucket.",
        default=1.0,
    )
    checkpoint_every: int = option(
        "Steps between checkpoints; 0 for none but on a stop.", default=500, heading="Writing"
    )
    log_every: int = option("Steps between logged training metrics.", default=20)
    eval_every: int = option("Steps between evaluations on held-out rows; 0 for the end only.", default=500)
    eval_rows: int = option("Most held-out rows to evaluate on; 0 for all.", default=16_384)
    images: str | None = option(
        "Labelled images, as for `harvest`: each evaluation splices the SAE into the store's tower and scores it on "
        "those that the SAE is not trained on (contrastive loss, zero-shot accuracy); and after 1, 2, 4, 8 ... steps.",
        default=None,
        is_text=True,
    )
    images_rows: int = option("Most of --images to score on, as evenly over the classes as they allow.", default=1000)
    images_memory: float = option(
        "Memory, in GB, to keep what the tower's blocks before the site make of --images, so that those run once.",
        default=2.0,
    )
    caption: str = option("Caption of a class, for --images.", default=CAPTION, is_text=True)
    tensorboard: bool = option("Write what is logged to RUN/tensorboard too.", default=False)
    wandb: str | None = option(
        "Weights & Biases project to log to as well; with WANDB_MODE=offline into RUN/wandb.",
        default=None,
        metavar="PROJECT",
    )
    overwrite: bool = option("Replace an existing run, or a sweep by a sweep.", default=False)

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("images", "wandb"):
            value = getattr(self, name)
            _require(value is None or value.strip() != "", name, repr(value), "is empty: name it, or leave it out")
        self._check_choices()
        for name in ("rows", "batch_size", "k", "groups", "log_every", "dead_after_rows", "resample_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in (
            *("warmup", "checkpoint_every", "eval_every", "eval_rows", "seed"),
            *("sparsity_warmup", "weight_decay", "clip_norm"),
        ):
            _require(0 <= getattr(self, name) < float("inf"), name, getattr(self, name), "must be 0 or more")
        for name in ("l1", "l0_penalty", "aux"):
            value = getattr(self, name)
            _require(value is None or 0 <= value < float("inf"), name, value, "must be 0 or more")
        _require(self.images_rows >= 2, "images_rows", self.images_rows, "must be at least 2")
        _require(0 <= self.images_memory < float("inf"), "images_memory", self.images_memory, "must be 0 or more")
        for name in ("expansion", "lr", "loader_memory", "bandwidth", "initial_threshold"):
            _require(0 < getattr(self, name) < float("inf"), name, getattr(self, name), "must be above 0, and finite")
        _require(self.seed < 1 << 63, "seed", self.seed, "must be below 2^63")
        _require(0 <= self.decay <= 1, "decay", self.decay, "is a share of the run, from 0 to 1")
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "must be from 0 to below 1")
        for name in ("target_l0", "micro_batch_size"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "must be at least 1")
        _require(self.order_seed is None or 0 <= self.order_seed < 1 << 63, "order_seed", self.order_seed, "is a seed")
        _require(self.aux_k is None or self.aux_k >= 1, "aux_k", self.aux_k, "must be at least 1")
        _require(self.layer is None or self.layer >= 0, "layer", self.layer, "is 0-based and must be 0 or more")
        _require(
            self.rows >= self.batch_size,
            "rows",
            self.rows,
            f"is less than one batch of {self.batch_size}",
        )
        _require(
            self.dead_remedy != "preact" or self.variant == "jumprelu",
            "dead_remedy",
            self.dead_remedy,
            f"is for variant jumprelu; variant {self.variant} has no thresholds",
        )
        _require(
            self.normalize != "layer-norm" or not self.is_transcoder,
            "normalize",
            self.normalize,
            "is undone by the reconstruction of the same row, and a transcoder has none: standardize, or expected-norm",
        )
        if self.images is not None:  # a run goes on from any folder
            object.__setattr__(self, "images", _lasting(self.images))

    def _check_types(self) -> None:
        """Refuse, of callers in Python and of written configurations, what a comparison would only stumble over."""
        for name, hint in get_type_hints(type(self)).items():
            value, kinds = getattr(self, name), get_args(hint) or (hint,)
            if not isinstance(value, kinds) and not (float in kinds and isinstance(value, int)):
                wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
                _require(False, name, repr(value), f"is of type {type(value).__name__}, and one {wanted} is needed")

    def _check_choices(self) -> None:
        for field in fields(self):
            choices, value = field.metadata["choices"], getattr(self, field.name)
            if choices and value is not None:
                _require(value in choices, field.name, value, f"must be one of {', '.join(choices)}")

    @property
    def steps(self) -> int:
        """Optimiser steps: whole batches in `rows`."""
        return self.rows // self.batch_size

    @property
    def resolved_error(self) -> str:
        """Reconstruction error: as given, or the variant's usual one."""
        return self.error or _USUAL_ERROR.get(self.variant, "mse")

    @property
    def resolved_dead_remedy(self) -> str:
        """Remedy for dead features: as given, or that of the variant's paper."""
        return self.dead_remedy or _USUAL_REMEDY.get(self.variant, "none")

    @property
    def resolved_aux(self) -> float:
        """Coefficient of the dead features' loss: as given, or that of the remedy's paper."""
        return _USUAL_AUX.get(self.resolved_dead_remedy, 0.0) if self.aux is None else self.aux

    @property
    def coefficient(self) -> float:
        """Coefficient of the variant's sparsity penalty, as given or its usual one: where it starts, under a target."""
        given = self.l0_penalty if self.variant == "jumprelu" else self.l1
        return _USUAL_COEFFICIENT.get(self.variant, 0.0) if given is None else given

    @property
    def sparsity(self) -> dict[str, float]:
        """What sets its sparsity, by the option's name: k, or the target, or the resolved coefficient."""
        if self.variant in _TOPK:
            return {"k": self.k}
        if self.target_l0 is not None:
            return {"target_l0": self.target_l0}
        return {"l0_penalty" if self.variant == "jumprelu" else "l1": self.coefficient}

    @property
    def resolved_order_seed(self) -> int:
        """Seed of the order of the rows."""
        return self.seed if self.order_seed is None else self.order_seed

    @property
    def is_transcoder(self) -> bool:
        """Whether another site is reconstructed than the one read."""
        return self.to_layer is not None or self.to_site is not None

    def prefixes(self, d_sae: int) -> list[int]:
        """Features of each nested prefix (matryoshka): halved from all of them, `groups` times at most."""
        sizes = {max(1, d_sae >> halvings) for halvings in range(self.groups)}
        return sorted(sizes)

    def d_sae(self, d_in: int) -> int:
        """Features of an SAE of `d_in` inputs; `ValueError` where none or fewer than `k` would be left."""
        d_sae = round(self.expansion * d_in)
        _require(d_sae >= 1, "expansion", self.expansion, f"leaves no feature at d_in = {d_in}")
        if "k" in options_of_variant(self.variant):
            _require(self.k <= d_sae, "k", self.k, f"exceeds the {d_sae} features (d_in {d_in} x --expansion)")
        if self.target_l0 is not None:
            few = f"exceeds the {d_sae} features (d_in {d_in} x --expansion)"
            _require(self.target_l0 <= d_sae, "target_l0", self.target_l0, few)
        return d_sae

    def resolved_aux_k(self, d_in: int) -> int:
        """Dead features that AuxK uses a row: as given, or Gao et al.'s power of two nearest d_in / 2."""
        return self.aux_k or 2 ** max(0, round_log2(d_in / 2))

    def to_json(self) -> dict[str, Any]:
        """Every option by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "TrainOptions":
        """Options as `to_json` wrote them; `ValueError` names one that is unknown or missing."""
        names = {f.name for f in fields(cls)}
        for what, wrong in (("unknown", sorted(set(record) - names)), ("no", sorted(names - set(record)))):
            if wrong:
                raise ValueError(f"{what} training option {wrong[0]!r}: written by another version of thresher")
        return cls(**record)


def options_of_variant(variant: str) -> set[str]:
    """The options that this variant has, of those that not all have."""
    return {name for name, variants in VARIANTS_OF.items() if variant in variants}


def round_log2(value: float) -> int:
    """The whole number nearest log2(value), for value >= 0.5."""
    from math import log2

    return round(log2(value)) if value >= 0.5 else 0


def _lasting(images: str) -> str:
    """An image source as it can be opened from any folder: an absolute path, a URL, or the word `quickstart`."""
    return images if images == "quickstart" or is_url(images) else os.path.abspath(images)


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ValueError(f"--{name.replace('_', '-')} {value} {rule}")
