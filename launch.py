"""What torchrun tells a process, in its environment, of the processes that it was started with."""

import os
from dataclasses import dataclass

_AGAIN = "start the processes with torchrun, or unset what it sets."


@dataclass(frozen=True)
class Launch:
    """A process's place among those of one torchrun."""

    rank: int
    n_ranks: int
    local_rank: int
    """The same on this machine."""
    n_local: int
    attempt: str
    """Number of the times that torchrun started them anew."""


def read_launch() -> Launch | None:
    """The place of this process among the others; None where torchrun started none with it.

    Raises
    ------
    ValueError
        When the environment is half of torchrun's, or holds numbers that are none.
    """
    n_ranks = _number("WORLD_SIZE", 1, 1, None)
    if n_ranks == 1 or "RANK" not in os.environ:
        return None
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(f"WORLD_SIZE is {n_ranks}, but {' and '.join(missing)} is not set: {_AGAIN}")
    _number("MASTER_PORT", 0, 0, 65535)
    rank = _number("RANK", 0, 0, n_ranks - 1)
    n_local = _number("LOCAL_WORLD_SIZE", n_ranks, 1, n_ranks)
    local_rank = _number("LOCAL_RANK", rank % n_local, 0, n_local - 1)
    return Launch(rank, n_ranks, local_rank, n_local, os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _number(name: str, default: int, least: int, most: int | None) -> int:
    text = os.environ.get(name, str(default))
    if not text.strip().isdecimal() or int(text) < least or (most is not None and int(text) > most):
        wanted = f"{least} to {most}" if most is not None else f"a number from {least}"
        raise ValueError(f"{name} is {text!r} in the environment, which is not {wanted}: {_AGAIN}")
    return int(text)
