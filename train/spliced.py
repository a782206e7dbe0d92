"""What training asks of whoever splices the SAE into its tower: the room of the towers is another."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..progress import Reporter
from ..store.format import Site
from ..store.reader import ActivationStore
from .models import SparseAutoencoder
from .options import TrainOptions


class SplicedEvaluation(Protocol):
    """Numbers of the tower with an SAE spliced in, on images that it is not trained on."""

    def prepare(self, places: Sequence[tuple[Site, Site | None]]) -> None:
        """Get ready, before the first step, for SAEs of these sites, each with what a transcoder reconstructs.

        Raises
        ------
        ValueError
            When one of them is no place that can be spliced.
        """

    def evaluate(self, sae: SparseAutoencoder, site: Site, target: Site | None) -> dict[str, Any]:
        """The numbers, as metrics.jsonl holds them; NaN where undefined."""


Splicer = Callable[[TrainOptions, ActivationStore, Reporter], SplicedEvaluation]
"""Makes what scores the SAEs of a store, as `images` and its fellows of the options ask for."""
