"""Says in words what a store, a run or a sweep is."""

import json
from pathlib import Path
from typing import Any

from ..store import format as f
from ..store.errors import DamagedStoreError, StoreError, UnfinishedStoreError
from ..store.objects import open_objects
from ..store.reader import open_store
from ..train.run_dir import CONFIG, SWEEP, Run, open_run
from ..train.sweep_dir import open_sweep
from .description import Description, laid_out, table_lines
from .store_description import describe_store, describe_unfinished
from .sweep_results import gather

_RESULTS = (
    *("features.zarr", "stats.json", "evaluate.json", "alignment.json", "attributes.json", "classes.tsv"),
    *("names.tsv", "visualisations", "figures", "report.html"),
)
"""What commands write into a run, as `info` lists it."""


def describe(place: str | Path) -> Description:
    """Describe the store, the run or the sweep at a path, or the store at a URL.

    Raises
    ------
    StoreError
        When there is neither, or the store is damaged or was not even laid out.
    """
    objects = open_objects(place)
    if objects.local is not None and (objects.local / CONFIG).exists():
        return _describe_run(objects.local)
    if objects.local is not None and (objects.local / SWEEP).exists():
        return _describe_sweep(objects.local)
    if any(objects.exists(name) for name in (f.GROUP_JSON, f.CREATING, f.METADATA_RECORD)):
        try:
            return describe_store(open_store(objects))
        except UnfinishedStoreError as unfinished:
            if objects.exists(f.GROUP_JSON):
                return describe_unfinished(objects, str(unfinished))
            raise
    what = "is neither an activation store nor a run" if objects.exists() else "does not exist"
    raise StoreError(f"{objects} {what}: give the STORE of a harvest or the RUN of a training.")


def _describe_run(path: Path) -> Description:
    run = open_run(path)
    last = _last_training_line(run)
    lines = _imported_lines(run) if run.is_imported else _trained_lines(run)
    if last:
        lines.append(("last logged step", ", ".join(f"{name} {_short(last[name])}" for name in last)))
    present = [name for name in _RESULTS if (path / name).exists()]
    lines.append(("results", ", ".join(present) or f"none yet: `thresher encode {path}`, then `thresher stats {path}`"))
    record = {"kind": "run", "path": str(path), "finished": run.is_finished, "last": last, **run.config}
    if (path / "stats.json").exists():
        stats = _read_stats(path / "stats.json")
        record["stats"] = stats
        shown = ("n_rows", "explained_variance", "normalized_mse", "l1", "n_dead", "n_entropy_undefined")
        numbers = [f"{name} {_short(stats[name])}" for name in shown if isinstance(stats.get(name), (int, float))]
        lines.append(("statistics", ", ".join(numbers)))
    return Description(f"Run {path}", lines, record)


def _trained_lines(run: Run) -> list[tuple[str, str]]:
    options, path = run.options, run.path
    state = "finished" if run.is_finished else f"unfinished: `thresher train {run.store_path} {path} --resume` goes on"
    what = ", ".join([options.variant, *(f"{name} {value:g}" for name, value in options.sparsity.items())])
    return [
        ("state", state),
        ("SAE", f"{what}: d_in {run.d_in:,}, d_sae {run.d_sae:,}, input {options.normalize}"),
        ("store", f"{run.store_path} ({run.site})"),
        (
            "training",
            f"{options.steps:,} steps of {options.batch_size:,} rows, Adam at {options.lr:g}, seed {options.seed}",
        ),
    ]


def _imported_lines(run: Run) -> list[tuple[str, str]]:
    imported = run.config["imported"]
    came = f"imported from {imported['source']} ({imported['format']})"
    if not run.is_finished:
        return [("state", f"{came}, unfinished: the same command again with --overwrite makes it anew")]
    sae = run.load_sae()
    k = f", k {sae.settings()['k']}" if "k" in sae.settings() else ""
    place = str(run.known_site) if run.known_site is not None else "where its inputs are read is not known"
    store = run.store_path if run.has_store else "none: name one with `thresher encode --store`"
    return [
        ("state", came),
        ("SAE", f"{sae.variant}{k}: d_in {run.d_in:,}, d_sae {run.d_sae:,}"),
        ("store", f"{store} ({place})"),
    ]


def _describe_sweep(path: Path) -> Description:
    sweep, saes = open_sweep(path), gather([path]).results
    counts = {status: sum(sae.status == status for sae in saes) for status in ("finished", "failed", "unfinished")}
    state = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
    if counts["finished"] < len(saes):
        state += f": `thresher train {sweep.store_path} {path} --resume` goes on"
    lines: list[tuple[str, str | list[str]]] = [
        ("SAEs", f"{len(saes)} of one stream of batches: {state}"),
        ("store", sweep.store_path),
    ]
    rows = [[sae.name, sae.status, _or_nothing(sae.l0), _or_nothing(sae.explained_variance)] for sae in saes]
    lines.append(("", table_lines(["run", "status", "L0", "explained variance"], rows)))
    lines += [(sae.name, f"failed: {sae.reason}") for sae in saes if sae.reason]
    lines.append(("results", f"`thresher sweep {path}` compares them; each is a run of its own, as {saes[0].path}"))
    record = {"kind": "sweep", "path": str(path), **sweep.to_json()}
    return Description(f"Sweep {path}", laid_out(lines), record)


def _or_nothing(value: float | None) -> str:
    return "-" if value is None else _short(value)


def _last_training_line(run: Run) -> dict[str, Any]:
    lines = [line for line in run.metrics() if "lr" in line]
    return {name: value for name, value in lines[-1].items() if isinstance(value, (int, float))} if lines else {}


def _read_stats(path: Path) -> dict[str, Any]:
    try:
        stats = json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedStoreError(
            f"{path} is damaged ({error}): compute it with `thresher stats --overwrite`."
        ) from error
    if not isinstance(stats, dict):
        raise DamagedStoreError(f"{path} is damaged: it holds no object. `thresher stats --overwrite` makes it anew.")
    return stats


def _short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
