"""Says in words what a store or a run is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..progress import format_bytes
from ..store import format as f
from ..store.attributes import read_group_attributes
from ..store.errors import DamagedStoreError, StoreError, UnfinishedStoreError
from ..store.loading import LoadingPlan, plan_loading
from ..store.objects import Objects, open_objects
from ..store.reader import ActivationStore, open_store
from ..train.run_dir import CONFIG, Run, open_run

_CHECKED_ROWS = 4096  # read for the norms: a few megabytes, enough for three digits
_BATCH_ROWS = 4096  # whose mixing is told


@dataclass(frozen=True)
class Description:
    """A store or a run, as lines of (what, value) and as JSON."""

    title: str
    lines: list[tuple[str, str]]
    record: dict[str, Any]


def describe(place: str | Path) -> Description:
    """Describe the store or the run at a path, or the store at a URL.

    Raises
    ------
    StoreError
        When there is neither, or the store is damaged or was not even laid out.
    """
    objects = open_objects(place)
    if objects.local is not None and (objects.local / CONFIG).exists():
        return _describe_run(objects.local)
    if objects.exists(f.GROUP_JSON) or objects.exists(f.CREATING):
        try:
            return _describe_store(open_store(objects))
        except UnfinishedStoreError as unfinished:
            if objects.exists(f.GROUP_JSON):
                return _describe_unfinished(objects, str(unfinished))
            raise
    what = "is neither an activation store nor a run" if objects.exists() else "does not exist"
    raise StoreError(f"{objects} {what}: give the STORE of a harvest or the RUN of a training.")


def _describe_unfinished(objects: Objects, state: str) -> Description:
    """What the metadata of a store says that a harvest has begun and not finished."""
    attributes = read_group_attributes(objects)
    if not attributes["arrays"]:  # of a merge: it has no rows of its own
        return Description(
            f"Activation store {objects}, unfinished",
            [("state", state)],
            {"kind": "store", "path": objects.url, "finished": False, "state": state},
        )
    provenance = attributes["provenance"]
    lines = [
        ("state", state),
        ("images", f"{provenance['image_source']} ({provenance['n_images']:,})"),
        ("arrays", ", ".join(str(f.Site.parse(name)) for name in attributes["arrays"])),
        ("rows", f"{attributes['n_rows']:,} in {provenance['dtype']} when it is finished"),
        ("model", f"{provenance['model']}, weights {provenance['pretrained']}, {provenance['precision']}"),
    ]
    return Description(
        f"Activation store {objects}, unfinished",
        lines,
        {"kind": "store", "path": objects.url, "finished": False, "state": state, **attributes},
    )


def _describe_store(store: ActivationStore) -> Description:
    provenance = store.provenance
    size = store.objects.size_bytes
    labels = np.delete(store.labels(0, store.n_rows), store.invalid_rows)
    n_labelled = int((labels >= 0).sum())
    n_classes = len(np.unique(labels[labels >= 0]))
    plan = plan_loading([store.activations(site) for site in store.sites[:1]], _BATCH_ROWS)
    n_chunks = sum(part.n_chunks for part in store.parts)
    lines = [
        ("images", "; ".join(f"{p.provenance.image_source} ({p.n_images:,})" for p in store.parts)),
        ("rows", f"{store.n_rows:,}, of which {len(store.invalid_rows):,} unreadable; {store.n_held_out:,} held out"),
        ("labels", f"{n_labelled:,} rows in {n_classes:,} classes{_some_names(store.label_names)}"),
        ("model", f"{provenance.model}, weights {provenance.pretrained} (sha256 {provenance.weights_sha256[:12]}...)"),
        ("activation function", "QuickGELU" if provenance.quick_gelu else "GELU"),
        ("preprocessing", _preprocessing(provenance.preprocessing)),
        ("precision", provenance.precision + _error(provenance.precision_error)),
        ("row order", _order(store)),
        ("mixing", f"chi2/df of the labels of {_BATCH_ROWS:,} rows {plan.mixing:.2f} (1 is ideal)" + _how(plan)),
        ("chunks", f"{n_chunks:,} of {store.rows_per_chunk:,} rows, codec {store.codec}"),
        ("size", f"{format_bytes(size)}" + (f", thumbnails of {store.thumbnail_px} px" if store.thumbnail_px else "")),
    ]
    sites = []
    for site in store.sites:
        norms = _norms(store, site)
        lines.append(
            (
                str(site),
                f"{norms['d_in']} x {provenance.dtype}; mean norm {norms['mean_norm']:.4g}, norm of the mean "
                f"{norms['norm_of_mean']:.4g}, deviation {norms['deviation']:.4g} (over {norms['n_rows']:,} rows)",
            )
        )
        sites.append({"site": site.path, **norms})
    record = {
        "kind": "store",
        "path": store.url,
        "finished": True,
        "n_parts": len(store.parts),
        "n_images": store.n_images,
        "tokens_per_image": store.tokens_per_image,
        "n_rows": store.n_rows,
        "n_valid": store.n_valid,
        "n_held_out": store.n_held_out,
        "n_labelled": n_labelled,
        "n_classes": n_classes,
        "size_bytes": size,
        "rows_per_chunk": store.rows_per_chunk,
        "mixing": plan.mixing,
        "codec": store.codec,
        "fingerprint": store.fingerprint,
        "sites": sites,
        "unreadable": [{"image": u.image, "key": u.key, "reason": u.reason} for u in store.unreadable],
        "provenance": provenance.to_json(),
    }
    return Description(f"Activation store {store.url}", lines, record)


def _order(store: ActivationStore) -> str:
    told = {"random": "seeded random", "source": "that of the source"}
    orders = [f"{told[part.row_order]}, seed {part.provenance.seed}" for part in store.parts]
    return orders[0] if len(orders) == 1 else "; ".join(f"part {i}: {order}" for i, order in enumerate(orders))


def _how(plan: LoadingPlan) -> str:
    if plan.mode == "runs":
        return f", read {plan.run_length} rows at a time straight into the batch"
    return f", through a buffer of {plan.buffer_rows:,} rows, read {plan.run_length:,} at a time"


def _norms(store: ActivationStore, site: f.Site) -> dict[str, Any]:
    n = min(_CHECKED_ROWS, store.n_valid)
    array = store.activations(site)
    if n == 0:
        nothing = dict.fromkeys(("mean_norm", "norm_of_mean", "deviation"), float("nan"))
        return {"d_in": array.d_in, "n_rows": 0, **nothing}
    x = array.tensor(array.read_positions(0, n)).double().numpy()  # (n, d_in)
    mean = x.mean(axis=0)
    return {
        "d_in": array.d_in,
        "n_rows": n,
        "mean_norm": float(np.linalg.norm(x, axis=1).mean()),
        "norm_of_mean": float(np.linalg.norm(mean)),
        "deviation": float(np.sqrt(((x - mean) ** 2).sum(axis=1).mean())),
    }


def _some_names(names: list[str] | None) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:3])
    return f": {shown}, ..." if len(names) > 3 else f": {shown}"


def _error(error: dict[str, float] | None) -> str:
    if not error:
        return ""
    told = [f"{name} {value:.2g}" for name, value in error.items() if name != "n_rows"]
    return f" (relative error {', '.join(told) or 'not known'} against fp32, over {error['n_rows']:,.0f} rows)"


def _preprocessing(settings: dict[str, Any]) -> str:
    size = settings.get("size")
    side = "x".join(str(n) for n in size) if isinstance(size, list | tuple) else str(size)
    numbers = [f"{name} {' '.join(f'{v:.3f}' for v in settings[name])}" for name in ("mean", "std") if name in settings]
    words = [str(settings[name]) for name in ("resize_mode", "interpolation") if name in settings]
    return ", ".join([f"{side} px", *words, *numbers])


def _describe_run(path: Path) -> Description:
    run = open_run(path)
    options = run.options
    last = _last_training_line(run)
    state = "finished" if run.is_finished else f"unfinished: `thresher train {run.store_path} {path} --resume` goes on"
    what = f"{options.variant}, k {options.k}" if options.variant == "topk" else f"{options.variant}, l1 {options.l1:g}"
    lines = [
        ("state", state),
        ("SAE", f"{what}: d_in {run.d_in:,}, d_sae {run.d_sae:,}, input {options.normalize}"),
        ("store", f"{run.store_path} ({run.site})"),
        (
            "training",
            f"{options.steps:,} steps of {options.batch_size:,} rows, Adam at {options.lr:g}, seed {options.seed}",
        ),
    ]
    if last:
        lines.append(("last logged step", ", ".join(f"{name} {_short(last[name])}" for name in last)))
    present = [name for name in ("features.zarr", "stats.json", "figures", "report.html") if (path / name).exists()]
    lines.append(("results", ", ".join(present) or f"none yet: `thresher encode {path}`, then `thresher stats {path}`"))
    record = {"kind": "run", "path": str(path), "finished": run.is_finished, "last": last, **run.config}
    if (path / "stats.json").exists():
        stats = _read_stats(path / "stats.json")
        record["stats"] = stats
        shown = ("n_rows", "explained_variance", "normalized_mse", "l1", "n_dead", "n_entropy_undefined")
        numbers = [f"{name} {_short(stats[name])}" for name in shown if isinstance(stats.get(name), (int, float))]
        lines.append(("statistics", ", ".join(numbers)))
    return Description(f"Run {path}", lines, record)


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
