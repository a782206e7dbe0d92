"""The overview: what a run is, how it trained, where its features lie."""

from dataclasses import dataclass

from ..page import Chapter, Page, Query
from ..runs import ExploredRun


@dataclass(frozen=True)
class Overview:
    """What the overview shows."""

    n_features: int


def view(run: ExploredRun, query: Query) -> Overview:
    """The overview of a run."""
    return Overview(n_features=run.d_sae)


CHAPTER = Chapter(pages=(Page("overview", "/", view),))
