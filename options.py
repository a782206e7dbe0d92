"""The declaration of a command's options as dataclass fields that the command line reads and shows.

A field declared by `option` carries its help text and, where the type does not say it, how the command line parses
it. Files that hold option dataclasses import neither torch nor zarr, so that `--help` stays quick.
"""

from collections.abc import Callable, Sequence
from dataclasses import MISSING, field
from typing import Any


def option(
    help: str,
    *,
    default: Any = MISSING,
    flag: str | None = None,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    heading: str | None = None,
    is_text: bool = False,
    default_factory: Callable[[], Any] | None = None,
) -> Any:
    """Declare one option of a command: a dataclass field with its help text.

    Parameters
    ----------
    help
        One sentence with the unit, shown by `--help`.
    default
        The only default there is. `MISSING` makes the option required.
    flag
        Name on the command line where it differs from the field's (`"--feature"` for `sheet_features`).
    choices
        The words allowed.
    metavar
        Placeholder in the help.
    heading
        What `--help` writes above this option and those after it, where a command has many.
    is_text
        Whether a comma is part of the value, where other options of the command take several with commas.
    default_factory
        For mutable defaults.
    """
    metadata = {
        "help": help,
        "flag": flag,
        "choices": tuple(choices) if choices else None,
        "metavar": metavar,
        "heading": heading,
        "is_text": is_text,
    }
    if default_factory is not None:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)
