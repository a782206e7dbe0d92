"""Named settings of `train`, and how given options are laid over them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .options import REMEDIES_OF, VARIANTS_OF, TrainOptions

RECIPES: dict[str, dict[str, Any]] = {
    # Fry 2024: the text's settings, which its code agrees with but for the decoder bias: the text says geometric
    # median, the code took the mean (`--b-dec-init mean`). 2,621,440 rows are 2,560 steps; a feature was dead after 64
    # steps of 1024 rows without firing.
    "post-2024": {
        "variant": "relu",
        "expansion": 64.0,
        "l1": 8e-5,
        "lr": 4e-4,
        "warmup": 500,
        "decay": 0.0,
        "batch_size": 1024,
        "rows": 2_621_440,
        "b_dec_init": "geometric-median",
        "encoder_init": "independent",
        "normalize": "none",
        "error": "normalized",
        "dead_remedy": "ghost",
        "dead_after_rows": 65_536,
        "precision": "fp32",
    },
}


def resolve_options(explicit: Mapping[str, Any]) -> TrainOptions:
    """Options of a run: those given, over those of the recipe they name, over the defaults.

    Parameters
    ----------
    explicit
        Only what the user gave, by field name of `TrainOptions`, `recipe` among it. A recipe's settings of its own
        variant are left out where another variant is given.

    Raises
    ------
    ValueError
        For an unknown recipe, a value that is never allowed, or an option that the variant does not have.
    """
    options = lay_over_recipe(explicit)
    for reason in misplaced_options(options, explicit).values():
        raise ValueError(reason)
    return options


def lay_over_recipe(explicit: Mapping[str, Any]) -> TrainOptions:
    """As `resolve_options`, but options that the variant does not have are let stand."""
    recipe = explicit.get("recipe")
    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"--recipe {recipe} must be one of {', '.join(RECIPES)}")
    settings = RECIPES.get(recipe or "", {})
    variant = explicit.get("variant", settings.get("variant", TrainOptions.variant))
    settings = {name: value for name, value in settings.items() if variant in VARIANTS_OF.get(name, (variant,))}
    if variant != settings.get("variant", variant):  # the recipe's are those of its own variant
        settings = {name: value for name, value in settings.items() if name not in ("error", "dead_remedy", "l1")}
    return TrainOptions(**{**settings, **explicit})


def misplaced_options(options: TrainOptions, explicit: Mapping[str, Any]) -> dict[str, str]:
    """Those of the given options that the SAE would ignore, each with the reason in one line."""
    reasons = {}
    for name, remedies in REMEDIES_OF.items():
        if name in explicit and options.resolved_dead_remedy not in remedies:
            reasons[name] = (
                f"--{name.replace('_', '-')} {explicit[name]} goes with --dead-remedy {' or '.join(remedies)}, and "
                f"this run has {options.resolved_dead_remedy}"
            )
    for name in ("images_rows", "images_memory", "caption"):
        if name in explicit and options.images is None:
            reasons[name] = f"--{name.replace('_', '-')} {explicit[name]} goes with --images, and none are given"
    for name, value in explicit.items():
        if value is not False and options.variant not in VARIANTS_OF.get(name, (options.variant,)):
            reasons[name] = (
                f"--{name.replace('_', '-')} {value} is for variant {' or '.join(VARIANTS_OF[name])} and this run is "
                f"{options.variant}: leave it out, or give --variant {VARIANTS_OF[name][0]}"
            )
    return reasons


def resumed_options(run_path: Path | str, explicit: Mapping[str, Any]) -> TrainOptions:
    """Options to resume a run with: its own, but for those given.

    Raises
    ------
    StoreError
        When there is no run at `run_path`.
    ValueError
        For a value that is never allowed; one that differs from the run's is refused when training resumes.
    """
    from .run_dir import open_run

    return replace(open_run(run_path).options, **explicit)
