"""The options of a command as its result keeps them, and as a command line gives them again."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any

NO_BEARING = frozenset(
    {
        *("overwrite", "force", "size_limit_gb", "device", "workers", "scheduler"),
        *("task_bytes", "images_at_once", "block_rows", "tile_features"),
    }
)
"""Options on which no number and no figure depends: where and in what pieces is computed, what is replaced."""


def kept_options(options: Any) -> dict[str, Any]:
    """Those of an option dataclass that have a bearing on its result, as JSON holds them."""
    return {spec.name: _plain(getattr(options, spec.name)) for spec in fields(options) if spec.name not in NO_BEARING}


def words_of(options: type, kept: Mapping[str, Any], *, without: Iterable[str] = ()) -> str:
    """Kept options that are not the defaults as a command line gives them, each after a blank.

    Parameters
    ----------
    options
        The option dataclass, whose defaults count.
    kept
        By the names of its fields; those that are missing count as the defaults, as of results of earlier versions.
    without
        Names of fields to leave out.
    """
    words = ""
    for spec in fields(options):
        value = kept.get(spec.name, default := _default(spec))
        if value == default or value is None or spec.name in without:
            continue
        flag = spec.metadata["flag"] or f"--{spec.name.replace('_', '-')}"
        if isinstance(value, bool):
            words += f" {flag}" if value else f" --no-{flag[2:]}"
            continue
        for each in value if isinstance(value, list | tuple) else (value,):
            words += f" {flag} {shlex.quote(_said(each))}"
    return words


def _default(spec: Any) -> Any:
    if spec.default_factory is not MISSING:
        return _plain(spec.default_factory())
    return None if spec.default is MISSING else _plain(spec.default)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _said(value: Any) -> str:
    """A value as it is read back: a whole number without a fraction."""
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)
