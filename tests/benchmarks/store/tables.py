"""The benchmark's tables."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from .bench import Bench, rate_of
from .readers import D_IN, DISK, FLOORS, Config

_TIMED = ("warm GB/s", "min to max", "of the floor", "CPU s/GB", "first pass GB/s", "cold GB/s", "of the cold disk")
_TIMED += ("open s", "own MB", "resident MB")


def table(bench: Bench, configs: Sequence[Config], shuffled: bool) -> Iterator[str]:
    """The lines of one table: shuffled passes, or scans."""
    columns = ["reader", *_TIMED, *(["chi2/df"] if shuffled else [])]
    yield "| " + " | ".join(columns) + " |"
    yield "|" + " --- |" * len(columns)
    for config in configs:
        if config.is_shuffled != shuffled:
            continue
        if config.name in bench.failures:
            cells = [bench.failures[config.name].replace("|", "/")] + [""] * (len(columns) - 2)
        else:
            cells = _timed_cells(bench.passes, config.name, FLOORS[shuffled])
            if shuffled:
                check = bench.checks[config.name]
                cells.append(f"{check['chi2']:.2f}" + (f", {check['repeats']} repeats" if check["repeats"] else ""))
        yield f"| {config.name} | " + " | ".join(cells) + " |"


def _timed_cells(passes: list[dict[str, Any]], name: str, floor: str) -> list[str]:
    warm, cold = (
        [row for row in passes if row["reader"] == name and row["cache"] == cache] for cache in ("warm", "cold")
    )
    if not warm:
        return [""] * len(_TIMED)
    rates = [rate_of(row["last"]) for row in warm]
    return [
        _median(rates),
        f"{_short(min(rates))} to {_short(max(rates))}",
        _median(ratios(passes, name, floor, "warm")),
        _median([row["last"]["cpu_s"] / (row["last"]["rows"] * D_IN * 2e-9) for row in warm]),
        _median([rate_of(row["first"]) for row in warm]),
        _median([rate_of(row["last"]) for row in cold]),
        _median(ratios(passes, name, DISK, "cold")),
        _median([row["open_s"] for row in warm]),
        f"{max(row['own'] for row in warm) / 1e6:.0f}",
        f"{max(row['resident'] for row in warm) / 1e6:.0f}",
    ]


def ratios(passes: list[dict[str, Any]], name: str, base: str, cache: str) -> list[float]:
    """One reader's rate over another's, round by round."""
    rates = {(row["reader"], row["round"]): rate_of(row["last"]) for row in passes if row["cache"] == cache}
    return [
        rate / rates[base, number]
        for (reader, number), rate in rates.items()
        if reader == name and (base, number) in rates
    ]


def _median(values: Sequence[float]) -> str:
    return _short(statistics.median(values)) if values else ""


def _short(value: float) -> str:
    return f"{value:.2f}" if value >= 0.095 else f"{value:.2g}"
