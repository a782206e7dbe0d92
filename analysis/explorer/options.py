"""Options of `explore`."""

import re
from dataclasses import dataclass

from ...options import option

_HOST_NAME = re.compile(r"[0-9a-f:.]*:[0-9a-f:.]*:[0-9a-f:.]*|[a-z0-9_.-]+", re.ASCII | re.IGNORECASE)
"""What a Host header can name, without the brackets of an IPv6 address."""


@dataclass(frozen=True, kw_only=True)
class ExploreOptions:
    """Options of `explore RUN...`."""

    host: str = option(
        "Address to listen on. Others than this machine's own also want --allow-host.", default="127.0.0.1"
    )
    port: int = option("Port; the next free one is taken where it is in use.", default=8421)
    allow_host: tuple[str, ...] = option(
        "Another name by which browsers may reach this server (repeatable).", default=(), metavar="NAME"
    )
    device: str = option("Where the tower runs for pictures of your own: cuda, mps, cpu or auto.", default="auto")

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port must be 0 to 65535, not {self.port}")
        for name in self.allow_host:
            if not _HOST_NAME.fullmatch(name):
                raise ValueError(
                    f"--allow-host must be a name or an address alone, without http://, port or path, not {name!r}"
                )


FEATURE_WORDS = ("shown", "all")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What a static export holds: options of `explore RUN... --export DIR`."""

    features: str = option(
        "Features whose pages are written: numbers with commas (of the first run; of others those nearest to them), "
        "shown (alive and outside the ultra-low-density cluster) or all.",
        default="shown",
        metavar="1,2,3|shown|all",
    )
    images: int = option(
        "Pages of images at most: the largest image of each feature first, then the second, up to the 16th.",
        default=2000,
        metavar="N",
    )
    rounds: int = option("Rounds of the game.", default=100, metavar="N")
    seed: int = option("Of the game's rounds.", default=0)
    overwrite: bool = option("Replace the export that DIR holds.", default=False)

    def __post_init__(self) -> None:
        for name in ("images", "rounds", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must be 0 or more, not {getattr(self, name)}")
        self.numbers  # noqa: B018 (raises)

    @property
    def numbers(self) -> tuple[int, ...] | None:
        """The features that were named, ascending; None where a word was given."""
        if self.features in FEATURE_WORDS:
            return None
        parts = [part.strip() for part in self.features.split(",")]
        if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
            raise ValueError(f"--features must be numbers with commas, shown or all, not {self.features!r}")
        return tuple(sorted({int(part) for part in parts}))
