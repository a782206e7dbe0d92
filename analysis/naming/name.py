"""Names of a run's features with their scores: `thresher name RUN`.

Features are named a block at a time; a finished block stays below `RUN/naming/` until all are done, so that the same
call goes on after a kill. `RUN/names.tsv` is written last, whole; `RUN/naming/name.json` says how.
"""

import json
import math
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._version import __version__
from ...harvest.recorded import Source
from ...harvest.weights import EMBEDDED
from ...progress import Reporter
from ...store.errors import StoreError
from ...store.files import FolderLock, write_atomically
from ...train.run_dir import remove
from ..folders import refuse_existing
from ..significance import adjusted_p_values
from ..visualising.stored_agreement import write_agreement
from ..whole_file import read_json, read_whole
from .best_phrases import Measured, combined_phrases, measure, name_features
from .measured import directions_of
from .names_file import NAMED, NAMES_TSV, NUMBERS, UNNAMED, UNTESTED, Name, read_name_lines, write_names
from .options import UNCENTRED, NameOptions
from .scores import statuses
from .setting import NamingSetting, open_setting
from .text_space import TextSpace, load_text_space
from .vocabulary import Vocabulary, image_captions, load_vocabulary

NAME_JSON = "name.json"
_UNFINISHED = ".names.tmp"
_FEATURES_A_BLOCK = 256
"""That a kill may cost; an image on which several of them fire is run once."""
_ONLY_HOW = ("device", "batch_size", "workers", "images", "store", "overwrite", "min_auroc", "min_z", "fdr", "features")
"""Options that decide no number of a feature."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class NameResult:
    """What `name` wrote."""

    path: Path
    method: str
    n_features: int
    """Features that were asked for."""
    n_named: int
    n_unnamed: int
    """Whose best phrase is not good enough."""
    n_untested: int
    """That fire on too few images or on all, or have no direction."""
    n_phrases: int
    n_kept: int
    """Features that an earlier call, which was stopped, had named."""
    examples: tuple[tuple[int, str, float], ...]
    """Best scored names: feature, name, score."""
    seconds: float


def name(
    run_path: Path | str,
    options: NameOptions | None = None,
    reporter: Reporter | None = None,
    *,
    images: Source | None = None,
) -> NameResult:
    """Name a run's features by phrases, and score the names on other images; the same call goes on after a kill.

    Parameters
    ----------
    images
        Where the images are now; by default what the options say, or where they were harvested from.

    Raises
    ------
    StoreError
        When the run has names, was not encoded, or its store, tower or images are not those of then.
    ValueError
        When an option does not fit the run, the vocabulary is empty, or the model's text tower cannot be had.
    FileNotFoundError, ConnectionError
        As `load_recorded_clip`; or when a file is not there.
    """
    run_path, options, reporter = Path(run_path), options or NameOptions(), reporter or Reporter()
    started = time.monotonic()
    refuse_existing(run_path / NAMES_TSV, overwrite=options.overwrite)
    with open_setting(run_path, options, images=images, reporter=reporter) as setting:
        features = chosen_features(options.features, setting.sae.d_sae)
        with closing(FolderLock(run_path)):
            vocabulary = run_vocabulary(setting, reporter)
            space = load_text_space(
                run_path,
                setting.clip,
                vocabulary,
                templates=options.templates_used,
                device=setting.tower.device,
                seed=options.seed,
                reporter=reporter,
            )
            of = _identity(setting, vocabulary)
            with _unfinished(run_path / "naming" / _UNFINISHED, of) as folder:
                lines, n_kept = _named(setting, space, features, folder, reporter)
                counts, examples = _write(run_path, options, lines)
                document = {
                    **of,
                    "thresholds": {key: getattr(options, key) for key in ("min_auroc", "min_z", "fdr")},
                    "options": asdict(options),
                    "vocabulary": {"n_phrases": len(vocabulary), "sources": [asdict(s) for s in vocabulary.sources]},
                    "n_features": len(features),
                    **counts,
                    "n_kept": n_kept,
                    "seconds": time.monotonic() - started,
                }
                text = json.dumps(document, indent=2)
                write_atomically(run_path / "naming" / NAME_JSON, text.encode() + b"\n")
            write_agreement(run_path, setting.clip, setting.pictures, reporter=reporter)
    return NameResult(
        path=run_path / NAMES_TSV,
        method=options.method,
        n_features=len(features),
        **counts,
        n_phrases=len(vocabulary),
        n_kept=n_kept,
        examples=examples,
        seconds=time.monotonic() - started,
    )


def chosen_features(text: str | None, d_sae: int) -> Ints:
    """The features `(n,)`, ascending, that a text such as `7,12,100-199` names; all where it is None.

    Raises
    ------
    ValueError
        When it names none, or one that the run does not have.
    """
    if text is None:
        return np.arange(d_sae)
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
        if match is None:
            raise ValueError(f"features {part.strip()!r} is no number and no range such as 100-199.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= d_sae:
            raise ValueError(
                f"features {part.strip()!r}: the run has the features 0 to {d_sae - 1}, and a range goes from the "
                "smaller to the larger."
            )
        found.update(range(first, last + 1))
    return np.array(sorted(found), np.int64)


def run_vocabulary(setting: NamingSetting, reporter: Reporter) -> Vocabulary:
    """The phrases that the options ask for, those of the run's own images among them.

    A source that was not asked for by name and cannot be had is left out, and that is said.
    """
    options, sources = setting.options, setting.options.sources
    if options.vocabulary is None and options.vocab is None and setting.store.provenance.model == EMBEDDED:
        sources = ("labels", "captions")  # its text tower has read the captions of its pictures and nothing else
    captions: list[str] = []
    if "captions" in sources:
        try:
            for part in range(len(setting.store.parts)):
                captions += image_captions(setting.pictures.images(part), options.seed)
        except (StoreError, ValueError, OSError) as error:
            if options.vocabulary is not None:
                raise
            reporter.warn(f"No captions among the phrases: {error}")
    found = load_vocabulary(sources, file=options.vocab, labels=setting.store.label_names or (), captions=captions)
    given = ", ".join(f"{source.name} {source.n_phrases:,}" for source in found.sources)
    words = {"n_repeated": "repeated", "n_blank": "blank", "n_too_long": "too long"}
    counts = {word: sum(getattr(source, key) for source in found.sources) for key, word in words.items()}
    left = ", ".join(f"{n:,} {word}" for word, n in counts.items() if n)
    reporter.say(f"{len(found):,} phrases: {given}{f'; left out: {left}' if left else ''}.")
    if len(found) == 1:
        reporter.warn(
            "One phrase has no others to be compared with: bundled nouns stand for chance, and every feature is scored "
            "for that phrase alone."
        )
    return found


def _identity(setting: NamingSetting, vocabulary: Vocabulary) -> dict[str, Any]:
    """What decides every number of a feature: finished blocks of another are of no use."""
    options, info, tower = setting.options, setting.features.info, setting.tower
    return {
        "method": options.method,
        "sae_sha256": info.sae_sha256,
        "store": setting.store.url,
        "store_fingerprint": info.store_fingerprint,
        "site": info.site,
        "model": tower.name,
        "pretrained": str(tower.pretrained),
        "weights_sha256": tower.weights_sha256,
        "templates": options.templates_used,
        "vocabulary_sha256": vocabulary.sha256,
        "how": {key: value for key, value in asdict(options).items() if key not in _ONLY_HOW},
        "thresher": __version__,
    }


@contextmanager
def _unfinished(folder: Path, of: dict[str, Any]) -> Iterator[Path]:
    """A folder for blocks, with those of an earlier call that was the same; gone when all is written."""
    wanted = json.dumps(of).encode()
    try:
        is_same = read_whole(folder / "of.json") == wanted
    except OSError:
        is_same = False
    if not is_same:
        remove(folder)
    folder.mkdir(exist_ok=True)
    write_atomically(folder / "of.json", wanted)
    yield folder
    shutil.rmtree(folder)


def _named(
    setting: NamingSetting, space: TextSpace, features: Ints, folder: Path, reporter: Reporter
) -> tuple[dict[int, dict[str, Any]], int]:
    """A line for each feature, and how many of them an earlier call left in the folder."""
    wanted = set(features.tolist())
    lines: dict[int, dict[str, Any]] = {}
    for path in folder.glob("block-*.json"):
        lines |= {line["feature"]: line for line in _block(path) if line["feature"] in wanted}
    missing = [feature for feature in features.tolist() if feature not in lines]
    n_kept = len(lines)
    with reporter.task("naming", len(features), "features", done=n_kept) as task:
        for start in range(0, len(missing), _FEATURES_A_BLOCK):
            some = np.array(missing[start : start + _FEATURES_A_BLOCK], np.int64)
            measured = measure(setting, some, task)
            found = list(_lines(setting, space, measured))
            write_atomically(folder / f"block-{some[0]}-{some[-1]}.json", json.dumps(found).encode())
            lines |= {line["feature"]: line for line in found}
    return lines, n_kept


def _block(path: Path) -> list[dict[str, Any]]:
    """The lines of a finished block; none where it is damaged, and its features are named anew."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return []
    is_whole = isinstance(found, list) and all(isinstance(line, dict) and set(line) == _KEYS for line in found)
    return found if is_whole else []


def _lines(setting: NamingSetting, space: TextSpace, measured: Measured) -> Iterator[dict[str, Any]]:
    """What names.tsv says of each feature but its status and q value; a number that is not finite is None."""
    options, features = setting.options, measured.features
    directions = directions_of(setting, options.method, features, measured.rows)
    combinations = None
    if options.sparse_names:
        combinations = combined_phrases(space, directions, setting.tower.device)
    named = name_features(
        setting,
        space,
        measured,
        directions,
        centred=options.method not in UNCENTRED,
        rescored=options.is_rescored,
        combinations=combinations,
    )
    for line, feature in enumerate(features.tolist()):
        phrases = [named.text(space, line, place) for place in range(named.phrases.shape[1])]
        numbers = {key: getattr(named, key)[line].item() for key in _NUMBERS}
        yield {
            "feature": feature,
            "name": phrases[0],
            "alternatives": [phrase for phrase in phrases[1:] if phrase],
            **{key: value if math.isfinite(value) else None for key, value in numbers.items()},
        }


_NUMBERS = tuple(key for key in NUMBERS if key != "q_value")  # which is over all features, and known at the end
_KEYS = {"feature", "name", "alternatives", *_NUMBERS}


def _write(
    run_path: Path, options: NameOptions, lines: dict[int, dict[str, Any]]
) -> tuple[dict[str, int], tuple[tuple[int, str, float], ...]]:
    """Write names.tsv; gives how many features are of each status, and the best scored names.

    The false discovery rate is that over these features. Lines of others, of an earlier call, stay where only some
    features were asked for.
    """
    features = sorted(lines)
    area, z, p = (
        np.array([lines[feature][key] for feature in features], np.float64)
        for key in ("auroc", "ablation_z", "p_value")
    )
    q = adjusted_p_values(p)
    status = statuses(area, z, q, min_auroc=options.min_auroc, min_z=options.min_z, fdr=options.fdr)
    found = {
        feature: Name(
            status=str(status[i]),
            method=options.method,
            q_value=None if np.isnan(q[i]) else float(q[i]),
            alternatives=tuple(lines[feature]["alternatives"]),
            **{key: value for key, value in lines[feature].items() if key not in ("feature", "alternatives")},
        )
        for i, feature in enumerate(features)
    }
    kept = {} if options.features is None else read_name_lines(run_path, 1 << 30)[0]
    write_names(run_path, kept | found)
    best = sorted((f for f in features if found[f].status == NAMED), key=lambda f: -(found[f].score or 0))[:5]
    counts = {f"n_{word}": int((status == word).sum()) for word in (NAMED, UNNAMED, UNTESTED)}
    return counts, tuple((feature, found[feature].name, found[feature].score or 0.0) for feature in best)
