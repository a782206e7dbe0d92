"""What a harvest waits for: the time of its main loop, stage by stage."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from .ranks import Ranks

DECODE, TOWER, GATHER, COMMIT = "decode", "tower", "gather", "commit"

_WAITS = {
    DECODE: "waited for images to be read and decoded",
    TOWER: "waited for the tower",
    GATHER: "put vectors in the order of the store, in its number format",
    COMMIT: "waited for windows to be written and committed",
    "other": "everything else",
}


@dataclass(frozen=True)
class StageTime:
    """The part of a harvest's time that one stage took."""

    stage: str
    """`decode`, `tower`, `gather`, `commit` or `other`."""
    what: str
    """What the loop did in that time."""
    seconds: float
    """Mean over the processes of the harvest."""
    share: float
    """Of the loop's time."""


class Profile:
    """Times the stages of a loop that runs in one thread; one that is off costs nothing."""

    def __init__(self, *, is_on: bool) -> None:
        self.is_on = is_on
        self._seconds: dict[str, float] = dict.fromkeys((DECODE, TOWER, GATHER, COMMIT), 0.0)
        self._off: AbstractContextManager[None] = nullcontext()

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Count what the block takes to a stage."""
        return self._timed(stage) if self.is_on else self._off

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] += time.perf_counter() - started

    def publish(self, loop_s: float, ranks: Ranks) -> None:
        """Add the times of this process's loop, which took `loop_s` seconds, to those of all."""
        if self.is_on:
            for stage, seconds in self._seconds.items():
                ranks.count(f"microseconds/{stage}", round(1e6 * seconds))
            ranks.count("microseconds", round(1e6 * loop_s))

    def stages(self, ranks: Ranks) -> list[StageTime] | None:
        """The times of all processes, once each has published its own; None where nothing was timed."""
        if not self.is_on:
            return None
        total_s = ranks.count("microseconds", 0) / 1e6 / ranks.n_ranks
        seconds = {stage: ranks.count(f"microseconds/{stage}", 0) / 1e6 / ranks.n_ranks for stage in self._seconds}
        seconds["other"] = max(0.0, total_s - sum(seconds.values()))
        return [
            StageTime(stage, _WAITS[stage], spent, spent / total_s if total_s else 0.0)
            for stage, spent in seconds.items()
        ]


def format_stages(stages: list[StageTime]) -> list[str]:
    """The stages as lines of a table."""
    head = f"{'stage':8}{'share':>7}{'seconds':>10}"
    return [head, *(f"{s.stage:8}{s.share:7.1%}{s.seconds:10.2f}  {s.what}" for s in stages)]
