"""The pictures that were optimised to make a feature fire, whether they passed, and how far all witnesses agree."""

import base64
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..page import Answer, NotHere, Query
from ..runs import ExploredRun
from ..visualised import PictureFile, visualised


@dataclass(frozen=True)
class Agreement:
    """Percentiles by which two witnesses, and all three, point to this feature; 50 by chance, None where unknown."""

    all: float | None
    """Mean of the three; None where a witness is missing."""
    picture_images: float | None
    picture_name: float | None
    images_name: float | None

    @property
    def is_any(self) -> bool:
        """Whether anything is known."""
        return any(value is not None for value in vars(self).values())


@dataclass(frozen=True)
class Visualisation:
    """The pictures of a feature and what was checked of the best one."""

    seeds: list[int | None]
    """Of each picture; None of one whose seed is not known."""
    verdict: str
    """`passed` or `failed`; empty where it was not checked."""
    why: str
    """The first rule that a failed one breaks."""
    parametrisation: str
    checks: dict[str, float]
    """By column of visualisations.tsv; NaN where undefined."""

    @property
    def places(self) -> range:
        """Of the pictures, in the order of `seeds`."""
        return range(len(self.seeds))


def visualisation(run: ExploredRun, feature: int) -> Visualisation | None:
    """The pictures of a feature; None where there are none."""
    found = visualised(run)
    files, line = found.pictures(feature), found.checked.get(feature)
    if not files:
        return None
    if line is None:
        return Visualisation([file.seed for file in files], "", "", "", {})
    return Visualisation(
        seeds=[line.seed if file.seed is None else file.seed for file in files],
        verdict=line.verdict,
        why=line.why,
        parametrisation=line.parametrisation,
        checks={**vars(line.checks), "seed_agreement": line.seed_agreement},
    )


def agreement(run: ExploredRun, feature: int) -> Agreement | None:
    """How far picture, top images and name agree; None where that was not computed."""
    if not run.has("agreement"):
        return None
    parts = ("agreement", "agreement_picture_images", "agreement_picture_name", "agreement_images_name")
    values = [float(run.array(name)[feature]) if run.has(name) else math.nan for name in parts]
    return Agreement(*(None if math.isnan(value) else value for value in values))


def picture_file(run: ExploredRun, feature: int, place: int) -> PictureFile:
    """A picture of a feature; `NotHere` where there is none in that place."""
    files = visualised(run).pictures(feature)
    if not 0 <= place < len(files):
        raise NotHere(f"There is no picture {place} of feature {feature}: it has {len(files)}.")
    return files[place]


def data_url(run: ExploredRun, feature: int, place: int) -> str:
    """A picture as an address that holds it, for pages without a server."""
    file = picture_file(run, feature, place)
    return f"data:{file.media_type};base64,{base64.b64encode(file.read()).decode()}"


def picture_answer(run: ExploredRun, query: Query) -> Answer:
    """The bytes of a picture."""
    file = picture_file(run, run.require_feature(query.path["feature"]), query.path["place"])
    return Answer(file.read(), file.media_type)


def exported_pictures(run: ExploredRun, features: Iterable[int]) -> list[Query]:
    """Every picture of some features."""
    found = visualised(run)
    paths: list[dict[str, Any]] = [
        {"feature": feature, "place": place} for feature in features for place in range(len(found.pictures(feature)))
    ]
    return [Query(path) for path in paths]
