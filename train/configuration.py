"""What a run records before its first step, and is held to when it is resumed."""

from dataclasses import fields
from importlib.metadata import version
from os.path import relpath
from pathlib import Path
from typing import Any

from .._version import __version__
from ..store.errors import StoreError
from ..store.format import Site
from ..store.loading import LoadingPlan
from ..store.provenance import Provenance, differences
from ..store.reader import ActivationStore
from .options import TrainOptions
from .run_dir import Run, check_same


def choose_site(store: ActivationStore, options: TrainOptions) -> Site:
    """The one site of the store that `layer`, `site` and `token` allow; `StoreError` lists them otherwise."""
    return one_site(store, options.layer, options.site, options.token, ("--layer", "--site", "--token"))


def choose_target(store: ActivationStore, options: TrainOptions, source: Site) -> Site | None:
    """What a transcoder reconstructs: as `to_layer` and `to_site` say, else as the site it reads; None of an SAE."""
    if not options.is_transcoder:
        return None
    layer = source.layer if options.to_layer is None else options.to_layer
    target = one_site(
        store, layer, options.to_site or source.site, source.token, ("--to-layer", "--to-site", "--token")
    )
    if target == source:
        raise ValueError(f"{source} is what is read: a transcoder reconstructs another layer or site.")
    return target


def one_site(
    store: ActivationStore, layer: int | None, site: str | None, token: str | None, flags: tuple[str, str, str]
) -> Site:
    """The one site of a store that fits; `StoreError` lists them, and the options that choose, otherwise."""
    fits = [
        each
        for each in store.sites
        if layer in (None, each.layer) and site in (None, each.site) and token in (None, each.token)
    ]
    if len(fits) == 1:
        return fits[0]
    if fits:
        held = "; ".join(str(each) for each in fits)
        differ = [
            flag
            for flag, values in zip(flags, zip(*((s.layer, s.site, s.token) for s in fits), strict=True), strict=True)
            if len(set(values)) > 1
        ]
        raise StoreError(f"{store.url} holds several sites ({held}): say which with {' and '.join(differ)}.")
    held = "; ".join(str(each) for each in store.sites)
    asked = " ".join(
        f"{flag} {value}" for flag, value in zip(flags, (layer, site, token), strict=True) if value is not None
    )
    raise StoreError(f"{store.url} does not hold the site asked for ({asked}); it holds {held}.")


def describe_run(
    options: TrainOptions,
    store: ActivationStore,
    site: Site,
    run_path: Path,
    d_sae: int,
    plan: LoadingPlan,
    target: Site | None = None,
) -> dict[str, Any]:
    """Everything of config.json but its format."""
    transcoder = {"target_site": target.path, "d_out": store.activations(target).d_in} if target else {}
    return {
        "options": options.to_json(),
        "site": site.path,
        "layer": site.layer,
        "d_in": store.activations(site).d_in,
        "d_sae": d_sae,
        **transcoder,
        "steps": options.steps,
        "passes": options.steps * options.batch_size / store.split("train")[1],
        "train_positions": list(store.split("train")),
        "heldout_positions": list(store.split("heldout")),
        "store": describe_store(store, run_path),
        "loading": plan.to_json(),
        "packages": {"thresher": __version__, **{name: version(name) for name in ("torch", "numpy", "safetensors")}},
    }


def describe_store(store: ActivationStore, run_path: Path) -> dict[str, Any]:
    """What config.json says of the store that a run is trained on."""
    folder = store.objects.local
    # A run and its store on one disk may be moved together.
    from_run = {"path_from_run": relpath(folder.resolve(), run_path.resolve())} if folder is not None else {}
    return {
        "path": store.objects.absolute_url if folder is None else str(folder.resolve()),
        **from_run,
        **_arrays(store),
        "fingerprint": store.fingerprint,
        "part_fingerprints": [part.fingerprint for part in store.parts],
        "provenance": store.provenance.to_json(),
    }


def _arrays(store: ActivationStore) -> dict[str, Any]:
    """What a store's arrays are, as far as its provenance does not say it."""
    return {
        "n_parts": len(store.parts),
        "sites": [site.path for site in store.sites],
        "tokens_per_image": store.tokens_per_image,
        "rows_per_chunk": store.rows_per_chunk,
        "codec": store.codec,
        "thumbnail_px": store.thumbnail_px,
        "n_rows": store.n_rows,
        "n_valid": store.n_valid,
    }


def is_training_store(run: Run, store: ActivationStore) -> bool:
    """Whether a store, opened with as many parts as it had then, is the one that a run was trained on."""
    # Which rows an imported SAE was trained on is not known.
    return not run.is_imported and is_recorded_store(run, store)


def is_recorded_store(run: Run, store: ActivationStore) -> bool:
    """Whether a store, opened with as many parts as it had then, is the one that a run's configuration names."""
    # A harvest that could not read the same images as an earlier one has the metadata of that one all the same.
    recorded = run.config.get("store", {})
    return (recorded.get("fingerprint"), recorded.get("n_valid")) == (store.fingerprint, store.n_valid)


def require_training_store(run: Run, store: ActivationStore) -> None:
    """Check that a store, opened with as many parts as it had then, is the one that a run was trained on.

    Raises
    ------
    StoreError
        Naming the first field that differs: of the provenance, of the arrays, of the images.
    """
    if is_recorded_store(run, store):
        return
    recorded = run.config["store"]
    theirs = Provenance.from_json(recorded["provenance"])
    images = "keys_sha256"  # last: where anything else of the images differs, that says more
    found = theirs.differences(store.provenance, [f.name for f in fields(theirs) if f.name != images])
    for name, here in _arrays(store).items():
        found += differences(name, recorded.get(name), here)
    found += theirs.differences(store.provenance, [images])
    for number, part in enumerate(store.parts):
        there = dict(enumerate(recorded.get("part_fingerprints", ()))).get(number)
        found += differences(f"the fingerprint of {part.name}", there, part.fingerprint)
    found += differences("fingerprint", run.store_fingerprint, store.fingerprint)
    how = "imported for" if run.is_imported else "trained on"
    raise StoreError(f"{store.url} is not the store that {run.path} was {how}: {found[0]}.")


def check_resumable(
    run: Run, options: TrainOptions, store: ActivationStore, site: Site, target: Site | None = None
) -> None:
    """Check that a run can go on with these options on this store, from the sites that they choose there.

    Raises
    ------
    StoreError
        Naming what is not as the run was started with.
    """
    check_same(run.path, "site", site.path, run.site.path)
    check_same(run.path, "target site", target and target.path, run.target_site and run.target_site.path)
    require_training_store(run, store)
    given = _effective(options)
    for name, started in _effective(run.options).items():
        check_same(run.path, name, given[name], started)


def _effective(options: TrainOptions) -> dict[str, Any]:
    """Options by name, as they act: what was left to a default is as if it had been given."""
    resolved = {
        "error": options.resolved_error,
        "dead_remedy": options.resolved_dead_remedy,
        "aux": options.resolved_aux,
        "l0_penalty" if options.variant == "jumprelu" else "l1": options.coefficient,
        "order_seed": options.resolved_order_seed,
    }
    of_sites = ("layer", "site", "token", "to_layer", "to_site")  # which are compared themselves
    return {name: value for name, value in (options.to_json() | resolved).items() if name not in of_sites}
