"""What the explorer answers to: requests for its own names, from its own pages, of a bounded size.

It shows local files to a local browser. So a page elsewhere must neither read it (a foreign Host, as in DNS
rebinding) nor write to it (a foreign Origin), and what it sends may run no script but its own.
"""

import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OWN_NAMES = ("127.0.0.1", "localhost", "::1")
MAX_BODY_BYTES = 10 << 20
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Guard:
    """Refuses what does not come from this explorer's own pages, and sends what they may do along with every answer.

    Parameters
    ----------
    app
        What answers the rest.
    names
        By which browsers may reach this server, besides this machine's own.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], names: Collection[str] = ()) -> None:
        self._app = app
        self._names = {*OWN_NAMES, *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-cache"))  # asked again each time, answered by an ETag
                message["headers"] = [*headers, *_HEADERS]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        n_hosts = sum(name == b"host" for name, _ in scope["headers"])
        reason = self._refused(scope["method"], headers, n_hosts)
        if reason is None:
            await self._app(scope, receive, guarded)
            return
        status, text = reason
        body = text.encode() + b"\n"
        start = {"type": "http.response.start", "status": status}
        start["headers"] = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
        await guarded(start)
        await send({"type": "http.response.body", "body": body})

    def _refused(self, method: str, headers: dict[str, str], n_hosts: int) -> tuple[int, str] | None:
        """Status and reason where a request is not answered."""
        if _name(headers.get("host", "")) not in self._names or n_hosts != 1:
            return 400, "this explorer is reached by another name: see --allow-host."
        if method in ("GET", "HEAD"):
            return None
        if method != "POST":
            return 405, "only GET, HEAD and POST are answered."
        if "origin" in headers and _authority(headers["origin"]) != headers["host"]:
            return 403, "a page of another origin may not write here."
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "a page of another site may not write here."
        length = headers.get("content-length", "")
        # a body in chunks may go on for ever
        if not (length.isascii() and length.isdigit()) or "transfer-encoding" in headers:
            return 411, "a POST says how long it is."
        if len(length) > 18 or int(length) > MAX_BODY_BYTES:
            return 413, f"at most {MAX_BODY_BYTES >> 20} MiB are taken."
        return None


def _name(host: str) -> str:
    """The name in a Host header, without its port; empty where it is none."""
    found = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9_.-]+))(?::\d*)?", host.lower(), re.ASCII)
    return "" if found is None else found[1] or found[2]


def _authority(origin: str) -> str:
    """Name and port of an Origin header, as a Host header has them."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
