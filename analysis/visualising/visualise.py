"""Makes pictures of a run's features and has them checked: `visualise RUN --features WHICH`.

The same call again keeps what is done: a feature's files, then its place in `pictures.json`, are written as soon as its
last seed is optimised.
"""

import json
import re
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...progress import Reporter
from ...store.errors import DamagedStoreError, StoreError
from ...store.files import FolderLock, write_atomically
from ...train.run_dir import remove
from ..whole_file import read_json
from .chosen import chosen_features
from .making import Making
from .options import VisualiseOptions
from .pictures import PICTURES_JSON, MadePicture, read_made
from .probe import open_probe
from .stored_agreement import EMBEDDINGS
from .table import CheckedPictures, write_table
from .visualisations_file import CHECKS_JSON, NULLS_TSV, VISUALISATIONS_TSV

OPTIONS_JSON = "options.json"
FORMAT = "thresher-visualisations"
_FREE = ("features", "images", "device", "batch_size", "workers", "overwrite")
"""Options that do not change a picture."""
_OURS = re.compile(
    r"\.?\d+(-\d+)?\.webp(\.tmp)?|"
    + "|".join(map(re.escape, (OPTIONS_JSON, PICTURES_JSON, VISUALISATIONS_TSV, NULLS_TSV, CHECKS_JSON, EMBEDDINGS)))
)
"""What follows from the options in the folder of pictures."""


@dataclass(frozen=True, kw_only=True)
class VisualiseResult:
    """What `visualise` made."""

    folder: Path
    n_made: int
    """Features whose pictures this call made."""
    n_kept: int
    """Features asked for whose pictures were there."""
    n_without_image: int
    """Features asked for that fire on no image to begin with."""
    seconds: float
    """Of making pictures."""
    checked: CheckedPictures


def visualise(
    run_path: Path | str, options: VisualiseOptions | None = None, reporter: Reporter | None = None
) -> VisualiseResult:
    """Make the pictures of some features, check all that there are, and write the table of checks.

    Raises
    ------
    StoreError
        When the run was not encoded or counted, its pictures were made with other options, its tower, store or images
        are not those of the run any more, or the disk is full.
    ValueError, FileNotFoundError, ConnectionError
        When a feature is none of the run's, or as `recorded_images` and `load_recorded_clip` raise them.
    """
    options, reporter = options or VisualiseOptions(), reporter or Reporter()
    probed = open_probe(run_path, options.device, batch_size=options.batch_size, pooling=options.tokens)
    making = Making(probed, options, reporter)
    asked = chosen_features(probed, options)
    n_active = probed.stored.statistics.n_active
    wanted = [feature for feature in asked if n_active[feature] or not options.from_image]
    if not wanted:
        raise ValueError(f"feature {asked[0]} fires on no image that --from-image could begin with.")
    if len(wanted) < len(asked):
        reporter.warn(f"{len(asked) - len(wanted):,} features are left out: they fire on no image to begin with.")
    identity = _identity(making)
    with closing(FolderLock(probed.path)):
        made = _settled(making.folder, identity, wanted, probed.probe.n_features, overwrite=options.overwrite)
        missing = [feature for feature in wanted if feature not in made]
        spectrum, started = making.spectrum, time.monotonic()
        if missing:
            making.make(missing, made)
        seconds = time.monotonic() - started
        checked = write_table(
            probed,
            made.values(),
            spectrum,
            making.size,
            images=options.images,
            seed=options.seed,
            reporter=reporter,
        )
    return VisualiseResult(
        folder=making.folder,
        n_made=len(missing),
        n_kept=len(wanted) - len(missing),
        n_without_image=len(asked) - len(wanted),
        seconds=seconds,
        checked=checked,
    )


def _identity(making: Making) -> dict[str, Any]:
    """All that a picture follows from: the document of options.json."""
    probed, options = making.probed, asdict(making.options)
    document = {
        "format": FORMAT,
        **{name: value for name, value in options.items() if name not in _FREE},
        "lr": making.options.rate,
        "canvas": list(making.size),
        "site": probed.probe.site.path,
        "weights_sha256": probed.probe.exact.weights_sha256,
        "sae_sha256": probed.stored.summary["sae_sha256"],
        "store_fingerprint": probed.store.fingerprint,
    }
    return document


def _settled(
    folder: Path, identity: dict[str, Any], wanted: Sequence[int], n_features: int, *, overwrite: bool
) -> dict[int, MadePicture]:
    """What was made by the same options; `StoreError` where it was by others, unless those go."""
    folder.mkdir(exist_ok=True)
    path = folder / OPTIONS_JSON
    try:
        made = read_made(folder)
        if made and max(made) >= n_features:
            raise DamagedStoreError(
                f"{folder / PICTURES_JSON} names feature {max(made)}, and the run has 0 to {n_features - 1:,}: make "
                "the pictures again with --overwrite."
            )
        if made and (other := _difference(path, identity)):
            raise StoreError(f"the pictures in {folder} were made with {other}: give that, or --overwrite them all.")
    except StoreError:
        if not overwrite:
            raise
        made = {}
    if not made:
        for each in folder.iterdir():
            if _OURS.fullmatch(each.name):
                remove(each)
    write_atomically(path, json.dumps(identity, indent=1).encode() + b"\n")
    return {feature: each for feature, each in made.items() if not (overwrite and feature in wanted)}


def _difference(path: Path, identity: dict[str, Any]) -> str | None:
    """The first option by which other pictures were made, in words; None where there is none."""
    try:
        found = dict(read_json(path))
    except (OSError, ValueError, TypeError):
        return f"options that {OPTIONS_JSON} does not tell any more"
    for name, value in identity.items():
        if found.get(name) != value:
            return f"{name} {found.get(name)}, not {value}"
    return None
