"""The explorer as an ASGI application: its pages, their JSON twins, thumbnails, style sheets and scripts."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...store.errors import StoreError
from .page import Answer, Chapter, Endpoint, NotHere, Page, PageError, Query, page_error
from .render import render_error, render_page, static_files, static_version, to_json
from .runs import ExploredRun
from .security import Guard
from .several import Explorer
from .threads import in_thread
from .urls import Urls

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

CHAPTERS = (
    "overview",
    "feature",
    "image",
    "game",
    "atlas",
    "features",
    "label",
    "compare",
    "upload",
    "neurons",
    "notes",
)
"""Modules of `pages`, in the order of the top bar; each has a `CHAPTER`."""
_KEPT = "public, max-age=31536000, immutable"


def chapters() -> list[Chapter]:
    """What the modules of `pages` add."""
    return [import_module(f".pages.{name}", __package__).CHAPTER for name in CHAPTERS]


def make_app(explorer: Explorer, *, names: Sequence[str] = ()) -> Callable[..., Awaitable[None]]:
    """The ASGI application of some runs.

    Parameters
    ----------
    names
        By which browsers may reach the server, besides this machine's own.
    """
    from starlette.applications import Starlette
    from starlette.routing import Mount, Router
    from starlette.staticfiles import StaticFiles

    found = chapters()
    for chapter in found:
        if chapter.start is not None:
            chapter.start(explorer)

    class Kept(StaticFiles):
        def file_response(self, *args: Any, **values: Any) -> "Response":
            response = super().file_response(*args, **values)
            response.headers["cache-control"] = _KEPT
            return response

    folder = str(static_files())
    first = [Mount(_static_root(), Kept(directory=folder)), Mount("/static", StaticFiles(directory=folder))]
    routes = [*first, *_routes(explorer, explorer.runs[0], found)]
    others = [
        Mount(explorer.root(run), Router(_routes(explorer, run, found), redirect_slashes=False))
        for run in explorer.runs[1:]
    ]
    own = explorer.runs[0]
    app = Starlette(
        routes=[*others, *routes],
        exception_handlers={
            404: partial(_not_found, explorer, own),
            405: partial(_not_found, explorer, own),
            PageError: partial(_failed, explorer, own),
        },
    )
    app.router.redirect_slashes = False  # one address a page, and no answer made of a Host header
    return Guard(app, names)


def _static_root() -> str:
    return f"/static/{static_version()}"


def _routes(explorer: Explorer, run: ExploredRun, chapters: Sequence[Chapter]) -> list[Any]:
    """Every address of one run."""
    from starlette.routing import Route

    urls = Urls(root=explorer.root(run), static_root=_static_root(), pictures=run.pictures_version)
    routes = [Route("/t/{row:int}", _answering(explorer, run, urls, Endpoint("", _thumbnail)))]
    for chapter in chapters:
        for endpoint in chapter.endpoints:
            methods = ["POST"] if endpoint.is_post else ["GET"]
            routes.append(Route(endpoint.path, _answering(explorer, run, urls, endpoint), methods=methods))
        for page in chapter.pages:
            twin = f"{page.path}.json" if page.path != "/" else "/index.json"
            routes.append(Route(twin, _answering(explorer, run, urls, Endpoint(twin, page.view, is_slow=page.is_slow))))
            routes.append(Route(page.path, _showing(explorer, run, urls, page)))
    return routes


def _showing(
    explorer: Explorer, run: ExploredRun, urls: Urls, page: Page
) -> "Callable[[Request], Awaitable[Response]]":
    """What answers with a page."""
    from starlette.responses import Response

    def made(query: Query, address: str) -> tuple[int, bytes]:
        try:
            return 200, render_page(explorer, run, page, page.view(run, query), urls, address)
        except (PageError, StoreError, OSError) as error:
            told = page_error(error)
            return told.status, render_error(explorer, run, told, urls)

    async def show(request: "Request") -> "Response":
        query = Query(request.path_params, dict(request.query_params))
        address = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        make = partial(made, query, address)
        status, content = await in_thread(make) if _is_slow(run, page, query) else make()
        return Response(content, status, media_type="text/html", headers={"cache-control": "no-cache"})

    return show


def _answering(
    explorer: Explorer, run: ExploredRun, urls: Urls, endpoint: Endpoint
) -> "Callable[[Request], Awaitable[Response]]":
    """What answers with bytes or JSON."""
    from starlette.responses import Response

    async def answer(request: "Request") -> "Response":
        body = await request.body() if endpoint.is_post else b""
        query = Query(request.path_params, dict(request.query_params), body)
        try:
            if _is_slow(run, endpoint, query):
                found = await in_thread(endpoint.answer, run, query)
            else:
                found = endpoint.answer(run, query)
        except (PageError, StoreError, OSError) as error:
            told = page_error(error)
            return Response(to_json({"error": str(told)}), told.status, media_type="application/json")
        if not isinstance(found, Answer):
            return Response(to_json(found), media_type="application/json", headers={"cache-control": "no-cache"})
        headers = {"cache-control": _KEPT if found.is_fixed else "no-cache" if found.is_kept else "no-store"}
        if found.file_name is not None:
            headers["content-disposition"] = f'attachment; filename="{found.file_name}"'
        return Response(found.content, media_type=found.media_type, headers=headers)

    return answer


def _is_slow(run: ExploredRun, what: Page | Endpoint, query: Query) -> bool:
    if run.store is not None and run.store.objects.local is None:
        return True  # a read from a bucket takes what a hundred pages take: nobody waits for another's
    return what.is_slow(query) if callable(what.is_slow) else what.is_slow


def _thumbnail(run: ExploredRun, query: Query) -> Answer:
    row, store = query.path["row"], run.require_store()
    if row >= store.n_rows:
        raise NotHere(f"Row {row} is not one of the {store.n_rows:,} rows of the store.")
    picture = run.thumbnail(row)
    if picture is None:
        raise NotHere(f"The store holds no thumbnail of row {row}.")
    is_fixed = query.text("of") == run.pictures_version != ""  # the next run at this address may be of another store
    return Answer(picture, "image/webp", is_fixed=is_fixed)


async def _not_found(explorer: Explorer, run: ExploredRun, request: "Request", error: Exception) -> "Response":
    return await _failed(explorer, run, request, NotHere("There is no such page."))


async def _failed(explorer: Explorer, run: ExploredRun, request: "Request", error: Exception) -> "Response":
    from starlette.responses import Response

    assert isinstance(error, PageError)
    if request.url.path.endswith(".json"):  # programs ask for these
        return Response(to_json({"error": str(error)}), error.status, media_type="application/json")
    urls = Urls(static_root=_static_root())
    return Response(render_error(explorer, run, error, urls), error.status, media_type="text/html")
