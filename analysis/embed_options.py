"""Options of `embed`."""

from dataclasses import dataclass

from ..options import option


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """How the images of a run's store are embedded."""

    device: str = option("Where the tower runs: auto, cpu, cuda, cuda:N or mps.", default="auto")
    batch_size: int = option("Images a forward pass.", default=64)
    workers: int | None = option("Decoding processes; by default as many as a harvest takes.", default=None)
    overwrite: bool = option("Replace the embeddings that the run already has.", default=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, not {self.batch_size}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"--workers must be at least 0, not {self.workers}")
