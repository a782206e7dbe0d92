"""The statistics of several runs beside each other: `compare RUN RUN...`."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from ..store.errors import StoreError
from ..train.run_dir import CONFIG, SWEEP, open_run
from ..train.sweep_dir import open_sweep
from .stored_statistics import STATS_JSON, open_statistics


@dataclass(frozen=True, kw_only=True)
class RunNumbers:
    """The numbers of one run that tell SAEs apart; of the rows that `stats` counted. NaN where undefined."""

    name: str
    path: Path
    variant: str
    d_sae: int
    expansion: float
    """d_sae / d_in."""
    split: str
    n_rows: int
    explained_variance: float
    normalized_mse: float
    held_out_explained_variance: float
    """NaN where no held-out rows were encoded."""
    l0: float
    """Mean."""
    max_l0: int
    uld_of_max_l0: float
    """Share of the features on the row with the largest L0 that are of the ULD cluster; NaN without a cluster."""
    n_dead: int
    share_dead: float
    n_uld: int
    """0 where there is no ULD cluster."""
    uld_of_alive: float
    uld_of_firings: float
    uld_of_mass: float
    coherence: float
    """Mean pairwise cosine of the encoder vectors in the ULD cluster; NaN without one."""
    coherence_rest: float
    coherence_chance: float
    """99th percentile of as many random directions: shaped like the activations where known, else even ones."""
    median_label_entropy: float
    """Nats, over the features where it is defined."""
    n_entropy: int
    """Features where it is defined."""


def compare_runs(paths: Sequence[Path]) -> list[RunNumbers]:
    """The numbers of runs, and of the runs of sweeps that have statistics, by rising d_sae, then name.

    Raises
    ------
    StoreError
        When a path is neither a run with statistics nor a sweep with one such run.
    """
    runs = [run for path in dict.fromkeys(paths) for run in _runs_of(path)]
    names = _short_names(runs)
    numbers = [run_numbers(run, name) for run, name in zip(runs, names, strict=True)]
    return sorted(numbers, key=lambda each: (each.d_sae, each.name))


def run_numbers(path: Path, name: str) -> RunNumbers:
    """The numbers of one run; `StoreError` where it has no statistics."""
    stored = open_statistics(path)
    s, uld = stored.summary, stored.summary["uld"] or {}
    d_in, d_sae = s["d_in"], s["d_sae"]
    entropy = stored.statistics.label_entropy
    defined = entropy[np.isfinite(entropy)]
    return RunNumbers(
        name=name,
        path=path,
        variant=_variant(path),
        d_sae=d_sae,
        expansion=d_sae / d_in if d_in else nan,
        split=s["split"],
        n_rows=s["n_rows"],
        explained_variance=_number(s.get("explained_variance")),
        normalized_mse=_number(s.get("normalized_mse")),
        held_out_explained_variance=_number((s["quality"].get("heldout") or {}).get("explained_variance")),
        l0=_number(s["l0"]["mean"]),
        max_l0=s["l0"]["max"],
        uld_of_max_l0=_number((s.get("max_l0_row_uld") or {}).get("share_of_firings")),
        n_dead=s["n_dead"],
        share_dead=s["n_dead"] / d_sae,
        n_uld=uld.get("n_features", 0),
        uld_of_alive=_number(uld.get("share_of_alive")),
        uld_of_firings=_number(uld.get("share_of_firings")),
        uld_of_mass=_number(uld.get("share_of_mass")),
        coherence=_number(uld.get("coherence")),
        coherence_rest=_number(uld.get("coherence_rest")),
        coherence_chance=_number(uld.get("coherence_matched_chance_p99") or uld.get("coherence_chance_p99")),
        median_label_entropy=float(np.median(defined)) if len(defined) else nan,
        n_entropy=len(defined),
    )


def _runs_of(path: Path) -> list[Path]:
    if not (path / SWEEP).exists():
        return [path]
    sweep = open_sweep(path)
    members = [sweep.run_path(member) for member in sweep.members]
    counted = [member for member in members if (member / STATS_JSON).exists()]
    if not counted:
        raise StoreError(
            f"{path} is a sweep of {len(members)} SAEs, none with statistics: run `thresher encode` and "
            f"`thresher stats` on {members[0] if members else path}."
        )
    return counted


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for n in range(1, max(len(each) for each in parts) + 1):
        names = ["/".join(each[-n:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def _variant(path: Path) -> str:
    """Of a run; of a matrix's statistics there is none to tell."""
    if not (path / CONFIG).exists():
        return "matrix"
    run = open_run(path)
    return "imported" if run.is_imported else run.options.variant


def _number(value: Any) -> float:
    return nan if value is None else float(value)
