"""Addresses within the explorer, on a server and in a static export."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Urls:
    """Addresses as the pages of one run write them.

    Parameters
    ----------
    root
        What stands before every page's path: `` or `/runs/NAME` on a server, `..` or `.` in an export.
    static_root
        What stands before the name of a style sheet or script.
    suffix
        What ends a page's address: nothing on a server, `.html` in an export.
    """

    root: str = ""
    static_root: str = "/static"
    suffix: str = ""
    top: str = ""
    """What stands before the root of the first run: nothing on a server, the way up in an export."""
    pictures: str = ""
    """`ExploredRun.pictures_version`; empty for none, and in an export."""

    holds: str = ""
    """What a static export of some features says of itself on every page."""

    @property
    def is_export(self) -> bool:
        """Whether pages are plain files."""
        return bool(self.suffix)

    def page(self, path: str = "") -> str:
        """Of a page by its path without the leading slash, such as `f/12`; the overview's is empty."""
        if not path and not self.is_export:
            return f"{self.root}/"
        return f"{self.root}/{path or 'index'}{self.suffix}"

    def run(self, root: str) -> str:
        """Of the overview of a run, by `Explorer.root`."""
        return f"{self.top}{root}/" + (f"index{self.suffix}" if self.is_export else "")

    def feature(self, feature: int) -> str:
        """Of a feature's page."""
        return self.page(f"f/{feature}")

    def image(self, row: int) -> str:
        """Of an image's page, by its row in the encoded store."""
        return self.page(f"i/{row}")

    def label(self, label: int) -> str:
        """Of a class's page."""
        return self.page(f"c/{label}")

    def of(self, root: str) -> "Urls":
        """The addresses of another run, by `Explorer.root`, as a page of this one writes them."""
        return replace(self, root=f"{self.top}{root}")

    def neuron(self, neuron: int) -> str:
        """Of an MLP neuron's page."""
        return self.page(f"neurons/{neuron}")

    def thumbnail(self, row: int) -> str:
        """Of the thumbnail of a row's image."""
        return f"{self.root}/t/{row}{self.thumbnail_end}"

    @property
    def thumbnail_end(self) -> str:
        """What ends a thumbnail's address: on a server the store's version, so that a browser may keep pictures."""
        return ".webp" if self.is_export else f"?of={self.pictures}" if self.pictures else ""

    def data(self, path: str) -> str:
        """Of what an endpoint gives."""
        return f"{self.root}/{path}"

    def static(self, name: str) -> str:
        """Of a style sheet or script."""
        return f"{self.static_root}/{name}"
