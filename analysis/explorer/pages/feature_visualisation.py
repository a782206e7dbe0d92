"""The picture that was optimised to make a feature fire, where the run holds one."""

import base64
from dataclasses import dataclass
from pathlib import Path

from ..page import Answer, NotHere, Query
from ..runs import ExploredRun

_MEDIA_TYPES = {".webp": "image/webp", ".png": "image/png"}


@dataclass(frozen=True)
class Visualisation:
    """A file beside the run, known by its feature's number."""

    path: Path
    media_type: str

    @property
    def data(self) -> str:
        """The picture as an address that holds it, for pages without a server."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.path.read_bytes()).decode()}"


def visualisation(run: ExploredRun, feature: int) -> Visualisation | None:
    """The picture of a feature; None where there is none."""
    for suffix, media_type in _MEDIA_TYPES.items():
        path = run.path / "visualisations" / f"{feature}{suffix}"
        if path.is_file():
            return Visualisation(path, media_type)
    return None


def visualisation_answer(run: ExploredRun, query: Query) -> Answer:
    """Its bytes."""
    feature = run.require_feature(query.path["feature"])
    found = visualisation(run, feature)
    if found is None:
        raise NotHere(f"There is no visualisation of feature {feature}.")
    return Answer(found.path.read_bytes(), found.media_type)
