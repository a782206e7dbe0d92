"""The tower behind a run, loaded when a visitor first needs it: embeddings of words and of classes' captions.

Shapes: n phrases, C classes, e the length of an embedding.
"""

import hashlib
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...store.errors import StoreError
from ...store.format import Site
from ...store.provenance import Provenance
from .page import Unavailable
from .runs import ExploredRun

if TYPE_CHECKING:
    from ...harvest.vision import LoadedClip, Tower
    from ...train.models import SparseAutoencoder
    from .live import Seen

_MOST_WAITING = 4
_LONGEST_WAIT_S = 60.0
_KEPT = 8
_MOST_CAPTIONS_ON_CPU = 8192
"""Prompt templates make 7 or 80 captions a class; ViT-L/14's text tower takes some 20 ms for each on a CPU core."""

_TURN = threading.Lock()
_PLACES = threading.BoundedSemaphore(_MOST_WAITING)

_T = TypeVar("_T")


@dataclass(frozen=True)
class ClassTexts:
    """What zero-shot predictions compare an image with.

    Parameters
    ----------
    names
        Of the classes, each once.
    labels
        The first label that has each name.
    embeddings
        `(C, e)` float64, of norm 1.
    logit_scale
        What cosines are multiplied by.
    description
        How the captions were made.
    place_of_label
        Which of the names is each label's; labels of one name share it.
    """

    names: list[str]
    labels: list[int]
    embeddings: NDArray[np.float64]
    logit_scale: float
    description: str
    place_of_label: Mapping[int, int]


class Held:
    """The last few pictures that visitors sent, by a random token."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, Seen] = OrderedDict()

    def put(self, seen: "Seen") -> str:
        """Hold a picture in the place of the one longest not asked for; gives its token."""
        token = secrets.token_urlsafe(18)
        with self._lock:
            self._seen[token] = seen
            while len(self._seen) > _KEPT:
                self._seen.popitem(last=False)
        return token

    def get(self, token: str) -> "Seen | None":
        """The picture of a token; None where it is not held any more."""
        with self._lock:
            if token in self._seen:
                self._seen.move_to_end(token)
            return self._seen.get(token)


class RunTower:
    """The tower that a run's rows were read in, its text tower, and the run's SAE.

    Whatever computes takes turns: one computation at a time in the whole process, a few waiting, the others are told
    that the explorer is busy.

    Parameters
    ----------
    run
        Of which; its `device` says where.
    """

    def __init__(self, run: ExploredRun) -> None:
        self._run = run
        self._found: dict[str, Any] = {}
        self.held = Held()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for this process's only turn at the towers; `Unavailable` where too many wait, or for too long."""
        if not _PLACES.acquire(blocking=False):
            raise Unavailable("The tower is busy with other visitors' pictures and words: try again in a moment.")
        try:
            if not _TURN.acquire(timeout=_LONGEST_WAIT_S):
                raise Unavailable(f"The tower was busy for {_LONGEST_WAIT_S:.0f} seconds: try again in a moment.")
            try:
                yield
            finally:
                _TURN.release()
        finally:
            _PLACES.release()

    def embed_text(
        self, phrases: Sequence[str], *, caption: str = "A photo of a {}.", templates: str = "none"
    ) -> NDArray[np.float32]:
        """Unit text embeddings of phrases, `(n, e)`.

        Parameters
        ----------
        caption
            Holds `{}` once, where a phrase goes; `{}` alone takes phrases as they are.
        templates
            `none` for that caption; `simple` or `openai` for the mean over CLIP's authors' 7 or 80 prompt templates.

        Raises
        ------
        Unavailable
            When the model is not at hand or not the store's any more, or its text tower has no tokenizer; or when the
            tower is busy.
        """
        with self.turn():
            return self._embedded(list(phrases), caption, templates).astype(np.float32)

    @property
    def provenance(self) -> Provenance:
        """Of the store whose rows are explored, or of the training store where that is out of reach."""
        if self._run.store is not None:
            return self._run.store.provenance
        if self._run.provenance:
            return Provenance.from_json(self._run.provenance)
        raise Unavailable(f"{self._run.name} was imported without a store, and its tower is not known.")

    @property
    def site(self) -> Site:
        """Where the SAE reads."""
        return self._run.site or Site.parse(self._run.summary["site"])

    @property
    def target(self) -> Site | None:
        """What a transcoder gives; None of an SAE."""
        return self._run.run.target_site

    # What follows is called within a turn.

    def clip(self) -> "tuple[LoadedClip, Tower]":
        """The model and its image tower in the store's precision, on the run's device."""
        record = json.dumps(self.provenance.to_json(), sort_keys=True)
        return self._once("clip", lambda: _loaded(record, self._run.device))

    def sae(self) -> "SparseAutoencoder":
        """The run's SAE, on the tower's device; `Unavailable` where it is not the one that was counted."""
        return self._once("sae", self._load_sae)

    def class_texts(self) -> ClassTexts:
        """Embedded captions of the run's classes, as `evaluate` makes them with the options it was last given."""
        return self._once("class texts", self._embed_classes)

    def _once(self, what: str, make: Callable[[], _T]) -> _T:
        """What was made the first time; a failure stays one until the explorer is started again."""
        if what not in self._found:
            try:
                self._found[what] = make()
            except Unavailable as error:
                self._found[what] = error
            except ImportError as error:
                self._found[what] = Unavailable(f"The tower cannot be run here: {error}.")
            except (StoreError, ValueError, OSError) as error:
                self._found[what] = Unavailable(f"The run's tower is not available: {' '.join(str(error).split())}")
        found = self._found[what]
        if isinstance(found, Unavailable):
            raise Unavailable(str(found))  # a new one: an exception that is raised again keeps every frame alive
        return found

    def _load_sae(self) -> "SparseAutoencoder":
        path, counted = self._run.path / "sae.safetensors", self._run.summary["sae_sha256"]
        sae = self._run.run.load_sae(self.clip()[1].device)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if counted is not None and counted != found:
            raise Unavailable(
                f"sae.safetensors of {self._run.name} is not the SAE that its statistics are of: run `thresher encode` "
                "and `thresher stats` with --overwrite."
            )
        return sae

    def _embedded(self, phrases: list[str], caption: str, templates: str) -> NDArray[np.float64]:
        from ...harvest.captions import class_captions, embed_captions, embed_templates

        def make() -> NDArray[np.float64]:
            clip, tower = self.clip()
            if templates != "none":
                found = embed_templates(clip, phrases, templates, tower.device)
            else:
                found = embed_captions(clip, class_captions(phrases, caption), tower.device)
            return found.double().numpy()

        if not phrases:
            raise ValueError("no phrases to embed.")
        try:
            return make()
        except (ValueError, OSError, ImportError) as error:
            raise Unavailable(f"Words cannot be embedded: {' '.join(str(error).split())}") from error

    def _embed_classes(self) -> ClassTexts:
        from ...harvest.captions import CAPTION, class_captions, logit_scale

        names = self._run.label_names
        if not names:
            raise Unavailable("The store has no names of classes, so that there is nothing to tell images apart by.")
        clip, tower = self.clip()
        given = (self._run.document("evaluate.json") or {}).get("options") or {}
        caption, templates = str(given.get("caption", CAPTION)), str(given.get("templates", "none"))
        texts = class_captions(names, "{}")
        first: dict[str, int] = {}
        for label, text in enumerate(texts):
            first.setdefault(text, label)
        unique = list(first)
        place = {text: number for number, text in enumerate(unique)}
        description = f"caption “{caption}”"
        if templates != "none":
            n = len(unique) * {"simple": 7, "openai": 80}[templates]
            if tower.device.type == "cpu" and n > _MOST_CAPTIONS_ON_CPU:
                description += f" (evaluate took its {templates} templates: {n:,} captions, too many for a CPU)"
                templates = "none"
            else:
                description = f"mean over the {templates} templates"
        return ClassTexts(
            names=unique,
            labels=list(first.values()),
            embeddings=self._embedded(unique, caption, templates),
            logit_scale=logit_scale(clip),
            description=description,
            place_of_label={label: place[text] for label, text in enumerate(texts)},
        )


@lru_cache(maxsize=2)
def _loaded(record: str, device: str) -> "tuple[LoadedClip, Tower]":
    """The model of a provenance record: once for all runs of a store. Nothing is remembered of a failure."""
    from ...harvest.rewrite import load_recorded_clip, recorded_tower

    provenance = Provenance.from_json(json.loads(record))
    clip = load_recorded_clip(provenance)
    return clip, recorded_tower(clip, provenance, device)
