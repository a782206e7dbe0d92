"""What a run records before its first step, and is held to when it is resumed."""

from importlib.metadata import version
from os.path import relpath
from pathlib import Path
from typing import Any

from .._version import __version__
from ..store.errors import StoreError
from ..store.format import Site
from ..store.reader import ActivationStore
from .options import TrainOptions
from .run_dir import Run, check_same


def choose_site(store: ActivationStore, options: TrainOptions) -> Site:
    """The one site of the store that `layer`, `site` and `token` allow; `StoreError` lists them otherwise."""
    fits = [
        site
        for site in store.sites
        if options.layer in (None, site.layer)
        and options.site in (None, site.site)
        and options.token in (None, site.token)
    ]
    if len(fits) == 1:
        return fits[0]
    held = "; ".join(str(site) for site in store.sites)
    if fits:
        raise StoreError(f"{store.url} holds several sites ({held}): say which with --layer, --site or --token.")
    named = (("--layer", options.layer), ("--site", options.site), ("--token", options.token))
    asked = " ".join(f"{flag} {value}" for flag, value in named if value is not None)
    raise StoreError(f"{store.url} does not hold the site asked for ({asked}); it holds {held}.")


def describe_run(
    options: TrainOptions, store: ActivationStore, site: Site, run_path: Path, d_sae: int
) -> dict[str, Any]:
    """Everything of config.json but its format."""
    folder = store.objects.local
    # A run and its store on one disk may be moved together.
    from_run = {"path_from_run": relpath(folder.resolve(), run_path.resolve())} if folder is not None else {}
    return {
        "options": options.to_json(),
        "site": site.path,
        "layer": site.layer,
        "d_in": store.activations(site).d_in,
        "d_sae": d_sae,
        "steps": options.steps,
        "passes": options.steps * options.batch_size / store.split("train")[1],
        "train_positions": list(store.split("train")),
        "heldout_positions": list(store.split("heldout")),
        "store": {
            "path": store.objects.absolute_url if folder is None else str(folder.resolve()),
            **from_run,
            "n_parts": len(store.parts),
            "fingerprint": store.fingerprint,
            "n_rows": store.n_rows,
            "n_valid": store.n_valid,
            "provenance": store.provenance.to_json(),
        },
        "packages": {"thresher": __version__, **{name: version(name) for name in ("torch", "numpy", "safetensors")}},
    }


def check_resumable(run: Run, options: TrainOptions, config: dict[str, Any]) -> None:
    """Raise `StoreError` naming what of options, store or site is not as the run was started."""
    if run.store_fingerprint != config["store"]["fingerprint"]:
        raise StoreError(
            f"{run.path} was trained on {run.store_path}, not on {config['store']['path']}: the fingerprints differ."
        )
    given = options.to_json()
    for name, started in run.options.to_json().items():
        check_same(run.path, name, given[name], started)
    check_same(run.path, "site", config["site"], run.config["site"])
