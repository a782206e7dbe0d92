"""The SAEs of a sweep: all combinations of the given options."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from .loop import STREAM_OPTIONS
from .options import TrainOptions
from .recipes import lay_over_recipe, misplaced_options, resolve_options
from .sweep_dir import SweepMember

_MOST_MEMBERS = 1000  # far above what any memory holds; what is asked for beyond is a slip of the hand


def expand(given: Mapping[str, Sequence[Any]]) -> tuple[SweepMember, ...]:
    """The members of all combinations of the given values.

    An option of some variants, or of some remedies for dead features, varies the members that have it alone.

    Parameters
    ----------
    given
        Values by field name of `TrainOptions`.

    Raises
    ------
    ValueError
        For several values of an option that all share, an option that no member has, or a value that is never allowed.
    """
    for name in (*STREAM_OPTIONS, "order_seed"):
        if len(given.get(name, ())) > 1:
            raise ValueError(one_value_wanted(name, given[name]))
    if len(given.get("seed", ())) > 1 and "order_seed" not in given:
        given = {**given, "order_seed": given["seed"][:1]}
    n = math.prod(map(len, given.values()))
    if n > _MOST_MEMBERS:
        raise ValueError(f"these options have {n:,} combinations; at most {_MOST_MEMBERS:,} SAEs are trained together.")
    members: dict[TrainOptions, dict[str, Any]] = {}
    reasons: dict[str, str] = {}
    for values in product(*given.values()):
        explicit = dict(zip(given, values, strict=True))
        misplaced = misplaced_options(lay_over_recipe(explicit), explicit)
        kept = {name: value for name, value in explicit.items() if name not in misplaced}
        members.setdefault(resolve_options(kept), kept)
        reasons |= misplaced
    for name, reason in reasons.items():
        if not any(name in kept for kept in members.values()):
            raise ValueError(reason)
    varying = [name for name in given if len({kept[name] for kept in members.values() if name in kept}) > 1]
    made = [
        SweepMember(_name(varies), varies, options)
        for options, kept in members.items()
        for varies in [{name: kept[name] for name in varying if name in kept}]
    ]
    if len({member.name for member in made}) < len(made):
        raise ValueError("two of these values give the same name of a folder: give one of them.")
    return tuple(made)


def _name(varies: Mapping[str, Any]) -> str:
    """`k=16,expansion=4`: a folder on any file system, which no shell wants quoted."""
    return ",".join(f"{name}={_short(value)}" for name, value in varies.items())


def _short(value: Any) -> str:
    if isinstance(value, float):
        value = f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return re.sub(r"[^A-Za-z0-9._+-]", "_", str(value))


def one_value_wanted(name: str, values: Sequence[Any]) -> str:
    """What is said of several values of an option that all SAEs of a sweep share."""
    return (
        f"--{name.replace('_', '-')} {','.join(map(str, values))}: SAEs that are trained together share it; "
        "give one value."
    )
