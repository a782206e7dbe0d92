"""The results of several SAEs beside each other: what varies between them, and their held-out numbers."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..store.errors import StoreError
from ..store.files import write_atomically
from ..store.outside import require_outside_stores
from ..train.options import FREE_ON_RESUME, VARIANTS_OF, TrainOptions
from ..train.run_dir import CONFIG, SWEEP, Run, open_run
from ..train.sweep_dir import FIGURE, TABLE, open_sweep

SPARSITY = ("k", "l1", "l0_penalty", "target_l0")
"""Options that choose a place on the frontier of one kind of SAE."""
SPLICED = ("contrastive_loss", "loss_recovered", "zero_shot_top1", "zero_shot_top5")
"""Numbers of the tower with the SAE spliced in, which a run has that was trained with --images."""

_OF_THE_SITE = ("layer", "site", "token", "to_layer", "to_site")
_NOT_COMPARED = {*FREE_ON_RESUME, *_OF_THE_SITE, "recipe"}


@dataclass(frozen=True)
class SaeResult:
    """One SAE among several.

    Parameters
    ----------
    name
        Its run, with its sweep's folder where several are compared.
    varies
        What it is, of the options that differ between those compared; one that its variant does not have is left out.
    status
        `finished`, `unfinished` or `failed`.
    step
        Of the held-out numbers; None where there are none yet, as is then each of them.
    n_dead, share_dead
        Of the training rows, as last logged; None where there were too few to know.
    contrastive_loss, loss_recovered, zero_shot_top1, zero_shot_top5
        Of the tower with the SAE spliced in, as last evaluated; None where it was trained without --images.
    """

    name: str
    path: Path
    varies: dict[str, Any]
    status: str
    reason: str | None
    step: int | None
    n_rows: int | None
    l0: float | None
    explained_variance: float | None
    explained_energy: float | None
    normalized_mse: float | None
    d_sae: int | None
    n_dead: int | None
    share_dead: float | None
    n_almost_dead: int | None
    decoder_coherence: float | None
    contrastive_loss: float | None = None
    loss_recovered: float | None = None
    zero_shot_top1: float | None = None
    zero_shot_top5: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Several SAEs, sorted, and the files that show them.

    Parameters
    ----------
    varying
        The options that differ.
    """

    varying: list[str]
    results: list[SaeResult]
    files: list[Path]

    @property
    def spliced(self) -> list[str]:
        """Those of `SPLICED` that any of them has."""
        return [name for name in SPLICED if any(getattr(each, name) is not None for each in self.results)]

    def to_json(self) -> dict[str, Any]:
        """What the command prints of it."""
        return {"varying": self.varying, "saes": [asdict(each) for each in self.results], "files": self.files}


@dataclass(frozen=True)
class _Place:
    name: str
    path: Path
    options: TrainOptions
    reason: str | None = None


def compare(paths: Sequence[Path], out: Path | None = None, *, overwrite: bool = False) -> Comparison:
    """Gather the results of runs and sweeps, and write their table and figure.

    Parameters
    ----------
    out
        Folder to write to; by default the sweep, where `paths` is one. Nothing is written otherwise.
    overwrite
        Replace the table and figure in `out`.

    Raises
    ------
    StoreError
        Where a path is neither a run nor a sweep, or `out` holds a table or figure already.
    """
    from .pareto import pareto_figure, to_png

    if out is None and len(paths) == 1 and (paths[0] / SWEEP).exists():
        out, overwrite = paths[0], True
    comparison = gather(paths)
    if out is None:
        return comparison
    table, figure = out / TABLE, out / FIGURE
    require_outside_stores(table, "--out")
    if not overwrite and (existing := next((path for path in (table, figure) if path.exists()), None)) is not None:
        raise StoreError(f"{existing} exists: give --overwrite to replace it, or another --out.")
    try:
        figure.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise StoreError(f"{figure.parent} cannot be made: a file is in its way. Choose another --out.") from None
    write_atomically(table, _to_tsv(comparison).encode())
    write_atomically(figure, to_png(pareto_figure(comparison)))
    return Comparison(comparison.varying, comparison.results, [table, figure])


def gather(paths: Sequence[Path]) -> Comparison:
    """The results of runs and sweeps, those of one kind of SAE together, by rising L0."""
    places = [place for path in dict.fromkeys(paths) for place in _places(path, len(paths) > 1)]
    settings = [_settings(place) for place in places]
    names = dict.fromkeys(name for each in settings for name in each)
    varying = [name for name in names if len({each[name] for each in settings if name in each}) > 1]
    # What one sweep was given in this order stands so in the names of its runs.
    order = {name: number for number, name in enumerate(_given(paths))}
    varying.sort(key=lambda name: order.get(name, len(order)))
    found = [
        _result(place, {name: each[name] for name in varying if name in each})
        for place, each in zip(places, settings, strict=True)
    ]
    return Comparison(varying, sorted(found, key=_sort_key), [])


def _places(path: Path, several: bool) -> list[_Place]:
    if not (path / SWEEP).exists():
        return [_Place(str(path), path, open_run(path).options)]
    sweep = open_sweep(path)
    return [
        _Place(
            str(sweep.run_path(member)) if several else member.name,
            sweep.run_path(member),
            member.options,
            member.reason,
        )
        for member in sweep.members
    ]


def _given(paths: Sequence[Path]) -> list[str]:
    sweeps = [open_sweep(path) for path in paths if (path / SWEEP).exists()]
    return list(dict.fromkeys(name for sweep in sweeps for name in sweep.given))


def _settings(place: _Place) -> dict[str, Any]:
    """What tells an SAE from others: the options that it has, but for those left to its variant, and its rows."""
    options = place.options
    settings = {
        name: value
        for name, value in options.to_json().items()
        if value is not None
        and name not in _NOT_COMPARED
        and options.variant in VARIANTS_OF.get(name, (options.variant,))
    }
    if (place.path / CONFIG).exists():
        run = open_run(place.path)
        source, target = run.site, run.target_site
        settings |= {"store": run.store_path, "layer": source.layer, "site": source.site, "token": source.token}
        if target is not None:
            settings |= {"to_layer": target.layer, "to_site": target.site}
    else:  # not started yet
        settings |= {name: value for name in _OF_THE_SITE if (value := getattr(options, name)) is not None}
    return settings


def _result(place: _Place, varies: dict[str, Any]) -> SaeResult:
    numbers: dict[str, Any] = dict.fromkeys(spec.name for spec in fields(SaeResult))
    status = "unfinished" if place.reason is None else "failed"
    if (place.path / CONFIG).exists():
        run = open_run(place.path)
        numbers |= _numbers(run)
        status = "finished" if run.is_finished else status
    reason = place.reason if status == "failed" else None
    return SaeResult(
        **{**numbers, "name": place.name, "path": place.path, "varies": varies, "status": status, "reason": reason}
    )


def _numbers(run: Run) -> dict[str, Any]:
    of_split: dict[str, dict[str, Any]] = {record["split"]: record for record in run.metrics()}  # the last of each
    held_out, trained = of_split.get("heldout", {}), of_split.get("train", {})
    if trained.get("rows", 0) <= run.options.dead_after_rows:
        trained = {}
    names = (
        *("step", "n_rows", "explained_variance", "explained_energy", "normalized_mse"),
        *("n_almost_dead", "decoder_coherence", *SPLICED),
    )
    return {
        **{name: held_out.get(name) for name in names},
        "l0": (held_out.get("l0") or {}).get("mean"),
        "d_sae": run.d_sae,
        "n_dead": trained.get("n_dead"),
        "share_dead": trained.get("share_dead"),
    }


def kind_of(result: SaeResult) -> dict[str, Any]:
    """What it is, but for its sparsity and its seed: the SAEs of one kind lie on one line."""
    return {name: value for name, value in result.varies.items() if name not in (*SPARSITY, "seed", "order_seed")}


def _sort_key(result: SaeResult) -> tuple[Any, ...]:
    kind = tuple((name, *_comparable(value)) for name, value in kind_of(result).items())
    sparsity = tuple(_comparable(result.varies.get(name)) for name in SPARSITY)
    return kind, result.l0 is None, result.l0 or 0.0, sparsity, result.name


def _comparable(value: Any) -> tuple[float, str]:
    """Numbers by size, then words."""
    return (float(value), "") if isinstance(value, (int, float)) else (float("inf"), str(value))


def _to_tsv(comparison: Comparison) -> str:
    left_out = {"path", "varies", *SPLICED} - set(comparison.spliced)
    names = [spec.name for spec in fields(SaeResult) if spec.name not in left_out]
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    writer.writerow([names[0], *comparison.varying, *names[1:]])
    for each in comparison.results:
        record = asdict(each)
        varies = [_cell(each.varies.get(name)) for name in comparison.varying]
        writer.writerow([record[names[0]], *varies, *(_cell(record[name]) for name in names[1:])])
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    return "" if value is None else value
