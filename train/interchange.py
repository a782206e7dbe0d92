"""SAEs from and to other libraries' files: what `import` and `export` do."""

import hashlib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._version import __version__
from ..store.errors import StoreError
from ..store.files import FolderLock, write_all_atomically
from ..store.format import SITES, TOKENS, Site
from ..store.outside import require_outside_stores
from ..store.provenance import Provenance
from ..store.reader import ActivationStore, open_store
from .configuration import describe_store, one_site
from .formats import FORMATS, Foreign, Origin, Outgoing, PlainSae, hash_of, read_foreign
from .interchange_options import ExportOptions, ImportOptions
from .models import SparseAutoencoder
from .options import REMEDIES_OF, VARIANTS_OF, TrainOptions
from .run_dir import CONFIG, SWEEP, WEIGHTS, Run, create_run, is_run, make_folder, open_run


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """What was imported."""

    run_path: Path
    format: str
    source: str
    variant: str
    d_in: int
    d_sae: int
    site: str | None
    """Path of the site that it reads; None where neither its files nor a store say."""
    store_path: str | None
    notes: list[str] = field(default_factory=list)
    """What differs from the source."""


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was exported."""

    out_path: Path
    format: str
    files: list[str]
    written_bytes: int
    notes: list[str]
    """What differs for a reader."""


def import_sae(source: Path | str, run_path: Path | str, options: ImportOptions | None = None) -> ImportResult:
    """Make a run of an SAE that another library wrote.

    Parameters
    ----------
    source
        A folder or a file, of a format that `options` names or that its files tell.
    run_path
        The run directory to make: nothing of it is written where the source cannot be read.

    Raises
    ------
    StoreError
        When the source is of no format that is read, is damaged, holds more than weights or numbers that are not
        finite; when it does not fit the store; when the run is there already.
    """
    options = options or ImportOptions()
    format_, foreign = read_foreign(Path(source), options.format)
    return save_foreign(foreign, format_.name, str(source), Path(run_path), options)


def save_foreign(
    foreign: Foreign, format_name: str, source: str, run_path: Path, options: ImportOptions
) -> ImportResult:
    """Write the run of an SAE that was read; `source` says where from."""
    if (run_path / CONFIG).exists() and not options.overwrite:
        raise StoreError(f"{run_path} already holds a run: replace it (--overwrite) or choose another RUN.")
    sae = foreign.sae.to(dtype=torch.float32)
    _require_finite(sae, source)
    store = open_store(options.store) if options.store is not None else None
    site, target = _places(sae, foreign.origin, options, store)
    imported = {
        "format": format_name,
        "source": source,
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in foreign.files},
        "config": foreign.config,
        "origin": foreign.origin.to_json(),
        "notes": foreign.notes,
    }
    config = {
        "imported": imported,
        **({"site": site.path, "layer": site.layer} if site else {}),
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        **({"d_out": sae.d_out} if sae.is_transcoder else {}),
        **({"target_site": target.path} if target else {}),
        **({"store": describe_store(store, run_path)} if store is not None else {}),
        "packages": {"thresher": __version__, **{name: version(name) for name in ("torch", "numpy", "safetensors")}},
    }
    make_folder(run_path)
    with closing(FolderLock(run_path)):  # a training may be writing what --overwrite removes
        run = create_run(run_path, config, overwrite=options.overwrite)
        sae.save(run_path / WEIGHTS)
    return ImportResult(
        run_path=run_path,
        format=format_name,
        source=source,
        variant=sae.variant,
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        site=site.path if site else None,
        store_path=run.store_path if store is not None else None,
        notes=foreign.notes,
    )


def _require_finite(sae: SparseAutoencoder, source: str) -> None:
    for name, tensor in sae.tensors().items():
        # A threshold of 0 is a logarithm of -inf.
        if not bool((torch.isfinite(tensor) | (tensor == -torch.inf) & (name == "log_threshold")).all()):
            raise StoreError(f"{source}: {name} holds numbers that are not finite in float32.")


def _places(
    sae: SparseAutoencoder, origin: Origin, options: ImportOptions, store: ActivationStore | None
) -> tuple[Site | None, Site | None]:
    """The site that an SAE reads, and that which a transcoder gives: as asked for, as its files say, as a store has."""
    asked = {name: getattr(options, name) for name in ("layer", "site", "token") if getattr(options, name) is not None}
    known = replace(origin, **asked)
    target = Site.parse(known.target) if known.target is not None and _is_site(known.target) else None
    if store is None:
        if asked and known.place is None:
            raise ValueError(_what_is_missing(known))
        return known.place, target
    layer = known.layer
    if layer is not None and layer < 0:
        layer += store.provenance.n_layers
    site = one_site(store, layer, known.site, known.token, ("--layer", "--site", "--token"))
    d_in = store.activations(site).d_in
    if sae.d_in != d_in:
        raise StoreError(f"the SAE reads {sae.d_in} inputs and {store.url} ({site}) holds vectors of {d_in}.")
    require_same_tower(origin, store)
    return site, target


def _what_is_missing(known: Origin) -> str:
    """Why a place that was asked for is none; a store would tell it."""
    for name, allowed in (("site", SITES), ("token", TOKENS)):
        value = getattr(known, name)
        if value is not None and value not in allowed:
            return f"--{name} {value} must be one of {', '.join(allowed)}"
    if known.layer is not None and known.layer < 0:
        return f"--layer {known.layer} counts from a tower's last block: name its store with --store"
    missing = " and ".join(f"--{name}" for name in ("layer", "site", "token") if getattr(known, name) is None)
    return f"where the SAE's inputs are read is not known without {missing} (or a --store that tells)"


def _is_site(path: str) -> bool:
    try:
        Site.parse(path)
    except ValueError:
        return False
    return True


def require_same_tower(origin: Origin, store: ActivationStore) -> None:
    """Refuse a store of another tower or preprocessing, where the SAE's files say which they are."""
    provenance = store.provenance
    here = {"weights_sha256": provenance.weights_sha256, "preprocessing_sha256": hash_of(provenance.preprocessing)}
    for name, value in here.items():
        there = getattr(origin, name)
        if there is not None and there != value:
            raise StoreError(
                f"{store.url} does not fit the SAE: {name} is {there[:12]}... there and {value[:12]}... here."
            )


def export_sae(run_path: Path | str, out: Path | str, options: ExportOptions | None = None) -> ExportResult:
    """Write a run's SAE as another library's files, its scaling folded into the weights.

    Parameters
    ----------
    out
        A folder; of a format that is one file, also that file (a name that ends in `.pt`).

    Raises
    ------
    StoreError
        When the format cannot express the SAE, files are there already, or `out` is a run or in a store; nothing is
        written then.
    """
    options, out = options or ExportOptions(), Path(out)
    format_ = FORMATS[options.format]
    written = format_.write(outgoing(open_run(run_path)))
    is_file = format_.file_name is not None and out.suffix == ".pt"
    files = {out if is_file else out / name: content for name, content in written.files.items()}
    _refuse_existing(out, is_file=is_file, overwrite=options.overwrite)
    require_outside_stores(next(iter(files)), "OUT")
    write_all_atomically({path: (content,) for path, content in files.items()})
    return ExportResult(
        out_path=out,
        format=format_.name,
        files=[path.name for path in files],
        written_bytes=sum(map(len, files.values())),
        notes=written.notes,
    )


def _refuse_existing(out: Path, *, is_file: bool, overwrite: bool) -> None:
    if is_run(out) or (out / SWEEP).exists():  # whose own weights have the name of some formats' files
        raise StoreError(f"{out} is a run or a sweep, which an export does not go into: name another OUT.")
    if is_file and out.is_dir():
        raise StoreError(f"{out} is a folder: name a file, or a folder whose name does not end in .pt.")
    if not is_file and out.exists() and not out.is_dir():
        raise StoreError(f"{out} is a file: name a folder.")
    if not overwrite and out.exists() and (is_file or any(out.iterdir())):
        state = "exists" if is_file else "is not empty"
        raise StoreError(f"{out} {state}: give --overwrite, or name another OUT.")


def outgoing(run: Run) -> Outgoing:
    """What a run gives to a format; `StoreError` where its training did not finish."""
    sae = run.load_sae()
    _require_finite(sae, str(run.path))
    return Outgoing(
        plain=PlainSae.of(sae),
        weights=(run.path / WEIGHTS).read_bytes(),
        origin=origin_of(run),
        variant=sae.variant,
        training={} if run.is_imported else _recipe(run.options),
        density=_density(run, sae.d_sae),
        version=__version__,
    )


def _recipe(options: TrainOptions) -> dict[str, Any]:
    """The options that acted and are numbers, or words from a list: no path of this machine."""
    variant, remedy = options.variant, options.resolved_dead_remedy
    acted = replace(options, error=options.resolved_error, dead_remedy=remedy, aux=options.resolved_aux)
    return {
        spec.name: value
        for spec in fields(options)
        if (isinstance(value := getattr(acted, spec.name), (int, float)) or (value and spec.metadata["choices"]))
        and variant in VARIANTS_OF.get(spec.name, (variant,))
        and remedy in REMEDIES_OF.get(spec.name, (remedy,))
    } | options.sparsity


def _without_folder(name: str) -> str:
    """A name as it is; of a path on this machine, the file's."""
    path = Path(name).expanduser()
    return path.name if path.is_absolute() or path.exists() else name


def origin_of(run: Run) -> Origin:
    """Where a run's inputs are read, as its store says; without one, as the files that it was imported from say."""
    origin = Origin.from_json(run.config["imported"].get("origin")) if run.is_imported else Origin()
    if run.has_store:
        provenance = Provenance.from_json(run.provenance)
        origin = replace(
            origin,
            model=_without_folder(provenance.model),
            pretrained=_without_folder(provenance.pretrained),
            weights_sha256=provenance.weights_sha256,
            preprocessing_sha256=hash_of(provenance.preprocessing),
            n_layers=provenance.n_layers,
        )
    if site := run.known_site:
        origin = replace(origin, layer=site.layer, site=site.site, token=site.token)
    if target := run.target_site:
        origin = replace(origin, target=target.path)
    return origin


def _density(run: Run, d_sae: int) -> Tensor | None:
    """Share of rows on which each feature is active, `(d_sae,)`, where its statistics are of these weights."""
    summary = read_stats(run)
    if summary is None:
        return None
    import zarr

    try:
        stored: Any = zarr.open_group(run.path / "stats.zarr", mode="r")["n_active"]
        counts = np.asarray(stored[:], dtype=np.float64)
    except (KeyError, ValueError, OSError):
        return None
    n_rows = summary.get("n_rows")
    return torch.from_numpy(counts / n_rows) if n_rows and len(counts) == d_sae else None


def read_stats(run: Run) -> Mapping[str, Any] | None:
    """The run's stats.json, where its statistics are of the weights that it has now."""
    from .formats.reading import read_json

    if not (run.path / "stats.json").exists():
        return None
    summary = read_json(run.path / "stats.json")
    of = hashlib.sha256((run.path / WEIGHTS).read_bytes()).hexdigest()
    return summary if summary.get("sae_sha256") == of else None
