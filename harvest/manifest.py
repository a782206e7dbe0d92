"""Images named by a CSV of `path,label`."""

import csv
import os
from pathlib import Path

from .images import ImageSet, Keys, read_regular_file
from .labels import labels_from_words

_LOOKED_AT = 1000  # paths whose existence is checked on opening: enough to see a wrong folder, quick on a network disk


class ManifestImages(ImageSet):
    """Images of a manifest; the key is the path as the manifest writes it."""

    def __init__(self, root: bytes, captions: list[str] | None, **fields: object) -> None:
        super().__init__(**fields)  # type: ignore[arg-type]
        self._root = root
        self._captions = captions

    def read(self, i: int) -> bytes:
        """Encoded bytes of image `i`."""
        return read_regular_file(os.path.join(self._root, self.keys[i]))

    def metadata(self, i: int) -> dict[str, str]:
        """The caption of image `i`, where the manifest has one."""
        return {"caption": self._captions[i]} if self._captions is not None and self._captions[i] else {}


def open_csv(path: Path) -> ManifestImages:
    """Open a CSV with a header line and the columns `path` and `label`; a column `caption` is used where there is one.

    Relative paths start at the CSV's folder. A label is a class number or a word; an empty one is no label. A path that
    does not exist is an unreadable image, but not one of the first thousand existing is an error.

    Raises
    ------
    ValueError
        When a column is missing, a line is short, or no file is where the CSV says.
    FileNotFoundError
        When there is no such CSV.
    """
    # surrogateescape: a path is bytes, and comes back as the same bytes by os.fsencode
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        columns = [column.strip() for column in reader.fieldnames or []]
        reader.fieldnames = columns
        missing = [column for column in ("path", "label") if column not in columns]
        if missing:
            found = ", ".join(columns) or "none"
            raise ValueError(
                f"{path} has no column {' and no column '.join(missing)}; its first line names: {found}. "
                "Its first line should be path,label (leave a label empty for none)."
            )
        paths: list[bytes] = []
        words: list[str] = []
        captions: list[str] | None = [] if "caption" in columns else None
        for row in reader:
            if not row["path"] or row["label"] is None:
                raise ValueError(f"{path}, line {reader.line_num}: path,label expected, found {list(row.values())}.")
            paths.append(os.fsencode(row["path"]))
            words.append(os.fsencode(row["label"]).decode("utf-8", "replace"))
            if captions is not None:
                captions.append(row["caption"] or "")
    root = os.fsencode(path.parent)
    first = paths[:_LOOKED_AT]
    if first and not any(os.path.exists(os.path.join(root, p)) for p in first):
        raise ValueError(
            f"{path}: not one of the first {len(first)} files exists (first: "
            f"{os.fsdecode(os.path.join(root, paths[0]))}). Relative paths start at the CSV's folder."
        )
    labels, classes = labels_from_words(words)
    return ManifestImages(root, captions, keys=Keys(paths), labels=labels, classes=classes, description=str(path))
