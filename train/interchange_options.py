"""The options of `import`, `export`, `push` and `pull`."""

from dataclasses import dataclass

from ..options import option

FORMAT_NAMES = ("saelens", "sparsify", "dictionary_learning", "saev", "prisma", "post", "thresher")


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Where an SAE of another library belongs."""

    format: str | None = option(
        "Format of SRC; by default recognised by its files.", default=None, choices=FORMAT_NAMES
    )
    store: str | None = option(
        "Activation store that the SAE reads, for `encode` and what follows; its width is checked.", default=None
    )
    layer: int | None = option("Layer (0-based) that it reads, where its files do not say.", default=None)
    site: str | None = option("Site that it reads, where its files do not say.", default=None)
    token: str | None = option("Token that it reads, where its files do not say.", default=None)
    overwrite: bool = option("Replace an existing run.", default=False)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What an SAE is written as."""

    format: str = option("Format to write.", default="saelens", choices=FORMAT_NAMES)
    overwrite: bool = option("Replace files that are there.", default=False)


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Where an SAE goes on the Hugging Face hub."""

    format: str = option("Format to write.", default="saelens", choices=("saelens", "thresher"))
    folder: str | None = option(
        "Folder of the repository; by default named after the layer, site and token.", default=None
    )
    private: bool = option("Make the repository private, where it is made now.", default=False)
    token_file: str | None = option(
        "File with an access token; by default that of HF_TOKEN or of `hf auth login`.", default=None
    )


@dataclass(frozen=True, kw_only=True)
class PullOptions(ImportOptions):
    """Which SAE comes from the Hugging Face hub."""

    revision: str | None = option("Branch, tag or commit; by default the newest.", default=None)
    folder: str | None = option("Folder of the repository, where it holds several SAEs.", default=None)
    size_limit_gb: float = option("Most gigabytes to download.", default=16.0)
    token_file: str | None = option(
        "File with an access token; by default that of HF_TOKEN or of `hf auth login`.", default=None
    )

    def __post_init__(self) -> None:
        if not self.size_limit_gb > 0:
            raise ValueError(f"--size-limit-gb {self.size_limit_gb} must be above 0")
