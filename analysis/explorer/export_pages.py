"""The files of a static export of one run: pages, the data that their scripts load, thumbnails."""

import base64
import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import bundle
from .game_choice import game_of
from .game_export import export_rounds
from .page import Answer, Chapter, Chosen, Endpoint, Page, PageError, Query
from .render import plain, render_error, render_page, static_files, to_json
from .runs import ExploredRun
from .several import Explorer
from .urls import Urls

_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
KINDS = {"feature": "features", "row": "rows", "label": "labels", "neuron": "neurons", "run": "runs"}
"""Parameter of a path -> the field of `Chosen` that has its values."""
_MODULE = re.compile(r'<script type="module" src="([^"]*)"></script>\n?')
_LINK = re.compile(r'(<a\b[^>]*?) href="([^"]*)"')
_PICTURE = re.compile(r'(<img\b[^>]*?) src="([^"]*)"')
_THUMBNAIL = re.compile(r"(?:.*/)?t/(\d+)\.webp")
_INLINED = re.compile(r'<script type="application/json"[^>]*>(.*?)</script>', re.DOTALL)
_BLOCK_BYTES = 4096  # of a disk
THUMBNAILS_AT_ONCE = 4096


@dataclass(frozen=True)
class Job:
    """One page to write."""

    page: Page
    query: Query
    path: str
    """Of the file, below the run's root."""


def jobs_of(chapters: Sequence[Chapter], chosen: Chosen) -> Iterator[Job]:
    """Every page of one run, those without numbers in their paths first."""
    pages = [page for chapter in chapters for page in chapter.pages if page.is_exported]
    for page in sorted(pages, key=lambda page: "{" in page.path):
        if page.exported_with and not getattr(chosen, page.exported_with):
            continue
        name = _PARAMETER.search(page.path)
        numbers = getattr(chosen, KINDS[name[1]]) if name else [None]
        for number in numbers:
            values = {} if name is None or number is None else {name[1]: number}
            yield Job(page, Query(values, is_whole=True), f"{_filled(page.path, values) or 'index'}.html")


@dataclass(frozen=True)
class Data:
    """A file that scripts load."""

    path: str
    """Below the run's root."""
    content: bytes
    value: Any = None
    """JSON that calls rows `row` or `rows` whose thumbnails it needs."""


def script_of(path: str, answer: Any) -> Data:
    """What an address answers, as the script that `exported` of api.js adds to a page."""
    rows: Any = None
    if isinstance(answer, Answer):
        value, rows = {"base64": base64.b64encode(answer.content).decode()}, {"rows": list(answer.rows)}
    else:
        value = rows = {"value": plain(answer)}
    text = f"(window.thresherData ??= {{}})[{json.dumps(path)}] = ".encode() + to_json(value) + b";\n"
    return Data(f"data/{re.sub(r'[^A-Za-z0-9._-]', '_', path)}.js", text, rows)


@dataclass
class Site:
    """What all runs of an export share: the folder that is filled, and what is in it.

    Parameters
    ----------
    folder
        To fill.
    known
        Paths below it of every page that will be there: links to others are left out.
    """

    folder: Path
    known: set[str]
    n_files: int = 0
    n_bytes: int = 0
    n_disk_bytes: int = 0
    """With the rest of each file's last block."""
    _bundles: dict[tuple[str, ...], str] = field(default_factory=dict)
    _modules: dict[str, str] = field(default_factory=dict)

    def write(self, path: str, content: bytes) -> None:
        """A file, counted."""
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(place, "xb") as file:  # two pages of one name would be a mistake of ours
            file.write(content)
        self.n_files += 1
        self.n_bytes += len(content)
        self.n_disk_bytes += on_disk(len(content))

    def write_static(self) -> None:
        """Style sheets and pictures; scripts are written with the pages that they are of."""
        for source in static_files().iterdir():
            if source.name.endswith(".js"):
                self._modules[source.name] = source.read_text()
            else:
                self.write(f"static/{source.name}", source.read_bytes())

    def script(self, entries: tuple[str, ...], page: str) -> str:
        """The name below `static/` of the classic script that does what the modules of a page do."""
        if entries not in self._bundles:
            name = f"{page}.js"
            while name in self._bundles.values():  # the same kind of page with other scripts
                name = f"{name.removesuffix('.js')}-{len(self._bundles)}.js"
            self.write(f"static/{name}", bundle(entries, self._modules).encode())
            self._bundles[entries] = name
        return self._bundles[entries]


class RunWriter:
    """Writes what an export holds of one run.

    Parameters
    ----------
    prefix
        Of its files below the site's folder: nothing, or `runs/NAME/`.
    """

    def __init__(self, site: Site, explorer: Explorer, run: ExploredRun, chosen: Chosen) -> None:
        self.site, self.explorer, self.run, self.chosen = site, explorer, run, chosen
        self.prefix = prefix_of(explorer, run)
        self._has_thumbnail: dict[int, bool] = {}

    def rendered(self, job: Job) -> str:
        """The HTML of a page before links to what is not there are left out.

        Raises
        ------
        PageError
            When a page of one feature, image, class or neuron cannot be made; others then say why.
        """
        urls = self._urls(job.path)
        try:
            view = job.page.view(self.run, job.query)
            return render_page(self.explorer, self.run, job.page, view, urls, posixpath.basename(job.path)).decode()
        except PageError as error:
            if job.query.path:
                raise
            return render_error(self.explorer, self.run, error, urls).decode()

    def write_page(self, job: Job) -> None:
        """A page, with one classic script and without links to what is not there, and the thumbnails on it."""
        html, static_root = self.rendered(job), self._urls(job.path).static_root
        entries = tuple(posixpath.basename(found) for found in _MODULE.findall(html))
        script = f'<script defer src="{static_root}/{self.site.script(entries, job.page.name)}"></script>\n'
        html = _MODULE.sub("", _MODULE.sub(lambda _: script, html, count=1))
        path = self.prefix + job.path

        def link(found: re.Match[str]) -> str:
            target = re.split("[?#]", found[2])[0]
            return found[0] if not target or ":" in target or _below(path, target) in self.site.known else found[1]

        def picture(found: re.Match[str]) -> str:
            row = _THUMBNAIL.fullmatch(found[2])
            is_there = self._thumbnail(int(row[1])) if row else _below(path, found[2]) in self.site.known
            return found[0] if is_there else found[1]

        html = _PICTURE.sub(picture, _LINK.sub(link, html))
        for text in _INLINED.findall(html):
            self._write_rows(json.loads(text))
        self.site.write(path, html.encode())

    def write_lists(self) -> None:
        """The numbers of the chosen pages, which every page's script reads."""
        numbers = to_json({name: getattr(self.chosen, name) for name in KINDS.values()})
        self.site.write(f"{self.prefix}data/export.js", b"window.thresherExport = " + numbers + b";\n")
        self.write(script_of("ids.json", {"ids": self.chosen.features}))

    def asked(self, chapters: Sequence[Chapter]) -> list[tuple[Endpoint, Query]]:
        """What scripts will load."""
        endpoints = [each for chapter in chapters for each in chapter.endpoints]
        return [(each, query) for each in endpoints if each.exports for query in each.exports(self.run, self.chosen)]

    def answered(self, endpoint: Endpoint, query: Query) -> "Data | None":
        """What an endpoint answers; None where it has no answer, which the page's script then says."""
        path = _filled(endpoint.path, query.path)
        if query.values:
            path += "?" + "&".join(f"{name}={value}" for name, value in query.values.items())
        try:
            answer = endpoint.answer(self.run, query)
        except PageError:
            return None
        if isinstance(answer, Answer) and answer.media_type.startswith("image/"):
            return Data(path, answer.content)
        return script_of(path, answer)

    def write(self, data: "Data") -> None:
        """A file that is no page, and the thumbnails that it names."""
        self.site.known.add(self.prefix + data.path)
        self.site.write(self.prefix + data.path, data.content)
        self._write_rows(data.value)

    def n_rounds(self, most: int) -> int:
        """Rounds of the game that there are, up to some."""
        try:
            return min(most, game_of(self.run).n_rounds)
        except PageError:
            return 0

    def game(self, n: int, seed: int) -> list[Data]:
        """Rounds of the game; none where the run has no game, which its page then says."""
        try:
            found = export_rounds(self.run, n, seed)
        except PageError:
            return []
        files = [Data(path, content) for path, content in found.files.items() if not path.startswith("t/")]
        return [*files, *(script_of(path, document) for path, document in found.documents.items())]

    def _urls(self, path: str) -> Urls:
        up = [".."] * path.count("/")
        top = [*up, *[".."] * self.prefix.count("/")]
        return Urls(
            root="/".join(up) or ".",
            static_root="/".join([*top, "static"]),
            suffix=".html",
            top="/".join(top) or ".",
            holds=self._holds,
        )

    @property
    def _holds(self) -> str:
        n, of = len(self.chosen.features), len(self.run.shown)
        if n >= of:
            return ""
        return f"This export holds the pages of {n:,} of {of:,} features. Counts and plots are of the whole run."

    def _thumbnail(self, row: int) -> bool:
        """Write a row's thumbnail, once; whether there is one."""
        if row not in self._has_thumbnail:
            picture = self.run.thumbnail(row) if self.run.store is not None else None
            if picture is not None:
                self.site.write(f"{self.prefix}t/{row}.webp", picture)
            self._has_thumbnail[row] = picture is not None
        return self._has_thumbnail[row]

    def write_thumbnails(self, rows: NDArray[np.int64]) -> None:
        """Thumbnails of many rows, in the order of the store: one read serves all that lie beside each other."""
        if not self.run.has_thumbnails:
            return
        for first in range(0, len(rows), THUMBNAILS_AT_ONCE):
            some = rows[first : first + THUMBNAILS_AT_ONCE]
            for row, picture in zip(some.tolist(), self.run.require_store().thumbnails(some), strict=True):
                if picture is not None:
                    self.site.write(f"{self.prefix}t/{row}.webp", picture)
                self._has_thumbnail[row] = picture is not None

    def _write_rows(self, value: Any) -> None:
        """The thumbnails of what JSON calls `row` or `rows`."""
        if isinstance(value, Mapping):
            for name, each in value.items():
                if name in ("row", "rows"):
                    for row in each if isinstance(each, list) else [each]:
                        if isinstance(row, int):
                            self._thumbnail(row)
                if isinstance(each, list | Mapping):
                    self._write_rows(each)
        elif isinstance(value, list):
            for each in value:
                if isinstance(each, list | Mapping):
                    self._write_rows(each)


def on_disk(n_bytes: int) -> int:
    """What a file of some bytes takes of a disk: whole blocks."""
    return -(-n_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def prefix_of(explorer: Explorer, run: ExploredRun) -> str:
    """What stands before the files of a run: nothing, or `runs/NAME/`."""
    root = explorer.root(run).lstrip("/")
    return f"{root}/" if root else ""


def _filled(path: str, values: Mapping[str, Any]) -> str:
    """A path of Starlette's notation with its parameters, without the leading slash."""
    return _PARAMETER.sub(lambda found: str(values[found[1]]), path).lstrip("/")


def _below(path: str, target: str) -> str:
    """Where an address on a page leads, below the site's folder."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
