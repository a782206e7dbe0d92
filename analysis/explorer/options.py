"""Options of `explore`."""

from dataclasses import dataclass

from ...options import option


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
