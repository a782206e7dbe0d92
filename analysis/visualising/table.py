"""The table of a run's checked pictures, made from their files: `RUN/visualisations/visualisations.tsv`.

Shapes: n pictures, e the length of an embedding.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...harvest.recorded import Source
from ...harvest.rewrite import load_recorded_clip, recorded_tower
from ...progress import Reporter
from ...store.errors import StoreError
from ...store.files import write_atomically
from ..features import open_features
from ..naming.pictures import RowPictures
from . import nulls
from .checks import BLUR_PX_AT_224, JPEG_QUALITY, RULES, seed_agreement
from .image_space import ImageSpace
from .judge import Judge, SeenPicture
from .pictures import MadePicture, read_picture
from .probe import ProbedRun
from .spectrum import ImageSpectrum
from .stored_agreement import AgreementResult, write_agreement, write_embeddings
from .visualisations_file import (
    CHECKS_FORMAT,
    CHECKS_JSON,
    FAILED,
    FOLDER,
    NULLS_TSV,
    PASSED,
    VISUALISATIONS_TSV,
    Visualisation,
    write_visualisations,
)

MEDIANS = (
    *("activation_ratio", "percentile", "rank", "share_of_code", "l0", "retention_jpeg", "retention_blur"),
    *("retention_crop", "transfer_percentile", "seed_agreement"),
)
"""Columns whose medians are told of each kind."""
_TOP_IMAGES = 64
"""Features whose largest real image is judged too."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The pictures of one kind, together: a line of the table of nulls."""

    kind: str
    """A word of `nulls.KINDS`."""
    n: int
    """Pictures, each with a feature that it was judged for."""
    n_passed: int
    medians: dict[str, float | None]
    """By column; None where most are undefined."""
    why_failed: dict[str, int]
    """How many broke each rule first."""


@dataclass(frozen=True, kw_only=True)
class CheckedPictures:
    """What `write_table` wrote."""

    path: Path
    n_checked: int
    n_passed: int
    kinds: list[Kind]
    agreement: AgreementResult | None

    def lines(self) -> list[str]:
        """What a terminal shows: the share that passes, of each kind."""
        shown = [
            f"{each.kind:<15} {each.n_passed:>6,} of {each.n:,} passed, median activation "
            f"{_or_none(each.medians['activation_ratio'])} of the largest on a real image, rank "
            f"{_or_none(each.medians['rank'])}"
            for each in self.kinds
        ]
        return [*shown, self.agreement.line()] if self.agreement is not None else shown


def write_table(
    probed: ProbedRun,
    made: Iterable[MadePicture],
    spectrum: ImageSpectrum,
    size: tuple[int, int],
    *,
    images: Source | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> CheckedPictures:
    """Check the pictures of a run and what they are held against, and write the tables; the caller holds its lock.

    Where the run's images are not at hand, nothing is said of transfer and agreement, and the reporter warns.

    Parameters
    ----------
    made
        All pictures of the run.
    spectrum, size
        Of the pictures: H, W.
    images
        Where the run's images are now; by default where they were harvested from.
    seed
        Of the features and the pictures of the nulls.

    Raises
    ------
    StoreError
        When a picture cannot be read.
    """
    reporter, folder = reporter or Reporter(), probed.path / FOLDER
    made = sorted(made, key=lambda each: each.feature)
    chosen = np.array([each.feature for each in made], np.int64)
    with ExitStack() as opened:
        clip = load_recorded_clip(probed.store.provenance)
        exact = replace(probed.store.provenance, precision="fp32")
        tower = recorded_tower(clip, exact, str(probed.probe.device))
        try:
            pictures = opened.enter_context(RowPictures(probed.path, probed.store, tower, images, reporter=reporter))
            space: ImageSpace | None = ImageSpace(pictures, probed.stored.statistics.top_row)
            judge = Judge(probed.probe, open_features(probed.path), space, chosen, seed=seed)
        except (StoreError, ValueError, OSError) as error:
            reporter.warn(f"pictures are not compared with the run's images: {error}")
            space, judge = None, Judge(probed.probe, open_features(probed.path), None, chosen, seed=seed)
        lines, others, embeddings = _checked(judge, folder, made, space, seed, reporter)
        against = [*_adversarial(judge, chosen, seed), *others, *_random_pictures(judge, spectrum, size, seed)]
        agreed = None
        if space is not None:
            write_embeddings(probed.path, chosen, embeddings)
            try:
                against += _top_images(judge, space, probed.stored.statistics.top_row, chosen)
            except (StoreError, ValueError, OSError) as error:
                reporter.warn(f"real images are not judged beside the pictures: {error}")
            agreed = write_agreement(probed.path, clip, space.pictures, reporter=reporter)
        write_visualisations(folder / VISUALISATIONS_TSV, lines)
        write_visualisations(folder / NULLS_TSV, [line for _, line in against], [kind for kind, _ in against])
        kinds = summarise([*((nulls.PICTURES, line) for line in lines), *against])
        _write_summary(folder, kinds, probed.probe.input_size)
    return CheckedPictures(
        path=folder / VISUALISATIONS_TSV,
        n_checked=len(lines),
        n_passed=sum(line.is_passed for line in lines),
        kinds=kinds,
        agreement=agreed,
    )


def summarise(lines: Sequence[tuple[str, Visualisation]]) -> list[Kind]:
    """Shares and medians by kind, in the order of `nulls.KINDS`."""
    found = []
    for kind in nulls.KINDS:
        of_kind = [line for each, line in lines if each == kind]
        if of_kind:
            values = {name: np.array([_value(line, name) for line in of_kind], np.float64) for name in MEDIANS}
            failed = Counter(line.checks.broken_rule[0] for line in of_kind if not line.is_passed)
            found.append(
                Kind(
                    kind=kind,
                    n=len(of_kind),
                    n_passed=sum(line.is_passed for line in of_kind),
                    medians={name: _median(column) for name, column in values.items()},
                    why_failed=dict(failed.most_common()),
                )
            )
    return found


def _checked(
    judge: Judge,
    folder: Path,
    made: Sequence[MadePicture],
    space: ImageSpace | None,
    seed: int,
    reporter: Reporter,
) -> tuple[list[Visualisation], list[tuple[str, Visualisation]], NDArray[np.float32]]:
    """Lines of the pictures, lines of the same pictures judged for other features, and embeddings `(n, e)`."""
    lines, others, embeddings = [], [], []
    generator = np.random.default_rng([seed, 10])
    with reporter.task("checking pictures", len(made), "pictures") as task:
        for each in made:
            best, *more_paths = (each.path(folder, of) for of in each.seeds)
            seen = judge.see(read_picture(best))
            agreed = (math.nan, math.nan)
            if space is not None and seen.embedding is not None:
                more = [judge.probe.view(read_picture(path)) for path in more_paths]
                every = np.concatenate([seen.embedding[None], *([space.embed(np.stack(more))] if more else [])])
                agreed = seed_agreement(every, space.mean), seed_agreement(every)
                embeddings.append(every.mean(axis=0))
            what = best.name, each.parametrisation, each.seed
            line = _line(judge, seen, each.feature, *what)
            lines.append(replace(line, seed_agreement=agreed[0], seed_agreement_raw=agreed[1]))
            others += [
                (nulls.OTHER_FEATURE, _line(judge, seen, feature, *what))
                for feature in nulls.drawn_features(judge.others, each.feature, generator)
            ]
            task.advance(1)
    return lines, others, np.array(embeddings, np.float32)


def _random_pictures(
    judge: Judge, spectrum: ImageSpectrum, size: tuple[int, int], seed: int
) -> Iterator[tuple[str, Visualisation]]:
    generator = np.random.default_rng([seed, 11])
    for kind, pictures in (
        (nulls.RANDOM_PHASES, nulls.random_phases(spectrum, size[1], nulls.N_RANDOM, seed)),
        (nulls.NOISE, nulls.noise(size, nulls.N_RANDOM, seed)),
    ):
        for number, picture in enumerate(pictures):
            seen = judge.see(picture)
            for feature in nulls.drawn_features(judge.others, None, generator):
                yield kind, _line(judge, seen, feature, "", kind, number)


def _adversarial(judge: Judge, chosen: NDArray[np.int64], seed: int) -> Iterator[tuple[str, Visualisation]]:
    some = _spread(chosen, nulls.N_ADVERSARIAL)
    for feature, pixels in zip(some.tolist(), nulls.adversarial(judge.probe, some, seed), strict=True):
        yield nulls.ADVERSARIAL, _line(judge, judge.see(pixels), feature, "", nulls.ADVERSARIAL, None)


def _top_images(
    judge: Judge, space: ImageSpace, top_row: NDArray[np.int64], chosen: NDArray[np.int64]
) -> Iterator[tuple[str, Visualisation]]:
    some = _spread(chosen, _TOP_IMAGES)
    some = some[top_row[some, 0] >= 0]
    for places, pixels in space.pictures.pixels(top_row[some, 0]):
        for feature, image in zip(some[places].tolist(), pixels.numpy(), strict=True):
            yield nulls.TOP_IMAGES, _line(judge, judge.see(image), feature, "", nulls.TOP_IMAGES, None)


def _spread(features: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Up to n of the features, evenly over their order."""
    return features[np.unique(np.linspace(0, len(features) - 1, min(n, len(features))).astype(np.int64))]


def _line(
    judge: Judge, seen: SeenPicture, feature: int, picture: str, parametrisation: str, seed: int | None
) -> Visualisation:
    checks = judge.judge(seen, feature)
    return Visualisation(
        feature=feature,
        picture=picture,
        parametrisation=parametrisation,
        seed=seed,
        checks=checks,
        verdict=PASSED if checks.is_passed else FAILED,
        why=checks.broken_rule[1],
    )


def _write_summary(folder: Path, kinds: list[Kind], input_size: tuple[int, int]) -> None:
    document = {
        "format": CHECKS_FORMAT,
        "rules": RULES,
        "input_size": input_size,
        "jpeg_quality": JPEG_QUALITY,
        "blur_px": BLUR_PX_AT_224 * min(input_size) / 224,
        "kinds": [asdict(kind) | {"words": nulls.KIND_WORDS[kind.kind]} for kind in kinds],
    }
    write_atomically(folder / CHECKS_JSON, json.dumps(document, indent=2, allow_nan=False).encode() + b"\n")


def _value(line: Visualisation, column: str) -> float:
    value: Any = (vars(line) | vars(line.checks))[column]
    return float(value)


def _median(values: NDArray[np.float64]) -> float | None:
    """Of the defined values; None where they are fewer than half, and would stand for the others beside them."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if 2 * len(known) >= len(values) > 0 else None


def _or_none(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3g}"
