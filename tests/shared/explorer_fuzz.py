"""Requests that no browser would make, drawn by a seed, and what may never be in an answer to them."""

import asyncio
import random
import re
import string
from collections import Counter
from pathlib import Path
from urllib.parse import quote, unquote

import thresher
from thresher.analysis.explorer.app import chapters

NUMBERS = (
    "0",
    "1",
    "5",
    "17",
    "95",
    "239",
    "240",
    "-1",
    "00",
    "1e3",
    "0x1",
    "9" * 19,
    "9" * 400,
    "٣",
    "1.5",
    "",
    " 1",
    "nan",
)
TEXTS = (
    "", "a", "dog", "class 5", "<script>alert(1)</script>", "'\"`;--", "../../etc/passwd", "\0", "\n", "\u202e", "é",
    "\ud800",
    "%", "%00", "%2e%2e%2f", "{{7*7}}", "${jndi:x}", "*", "(", "[", "\\", "img:3", "img:-1", "-", "_", "a" * 199,
    "a" * 201,
    "a" * 20_000, "NaN", "inf", "-0", "true", "null", "0,1,2", "1..2", ">=1", "density", "entropy", "asc", "desc",
    "csv",
    "1e309", "-1e309", "1,2,,3", "0," * 3000,
)  # fmt: skip
WORDS = (  # noqa: SIM905 (a line each would be fifty)
    "q sort order page n seed feature features row rows label uld dead tag name mode round guess clue from "
    "to min max density entropy top run with by x y phrase picture choice choices sensitive group alive "
    "scale size shown per split kind token ids start stop of k tab direction desc labels brush where"
).split()
BODIES = (
    b"", b"{}", b"[]", b"null", b"1", b'"x"', b"{", b"\xff\xfe\x00", b'{"tags": 1}', b'{"tags": ["a"], "note": "b"}',
    b'{"note": "' + b"x" * 100_000 + b'"}', b'{"tags": [null, {}, []]}', b"[" * 20_000, b'{"sensitive": "yes"}',
    b'{"features": [0, -1, 1e9, "x"]}', b'{"guess": 1}', b'{"a": NaN}', b"RIFF\x00\x00\x00\x00WEBPVP8 ",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a\xff\xff\xff\xff", b"%PDF-1.4", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b'{"scales": {"0": "x"}}',
)  # fmt: skip
METHODS = ("GET",) * 14 + ("HEAD", "POST", "POST", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get", "")
HOSTS = (b"127.0.0.1",) * 30 + (b"localhost:8421", b"evil.example", b"", b"\xff", b"[::1]", b"127.0.0.1:" + b"9" * 99)
LEAKS = re.compile(r'Traceback|site-packages|File "|\bat 0x[0-9a-f]{6}|Error\(|jinja2\.|root:x:|line \d+, in ')


def paths() -> tuple[list[str], list[str]]:
    """The paths of pages and their twins, and of what takes a body, as the router has them."""
    pages = [page.path for chapter in chapters() for page in chapter.pages]
    ends = [end for chapter in chapters() for end in chapter.endpoints]
    twins = ["/index.json" if path == "/" else f"{path}.json" for path in pages]
    gets = [*pages, *twins, *(end.path for end in ends if not end.is_post), "/t/{row:int}", "/static/{name}"]
    return gets, [end.path for end in ends if end.is_post]


class Fuzz:
    """A visitor who means harm.

    Parameters
    ----------
    app
        The ASGI application.
    hidden
        Folders of this machine that no answer may name.
    """

    def __init__(self, app, hidden: list[Path], seed: int) -> None:
        self._app, self._rng = app, random.Random(seed)
        self._hidden = [
            str(path) for path in [*hidden, Path(thresher.__file__).parent, Path.home()] if str(path) != "/"
        ]
        self._gets, self._posts = paths()
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []
        """What went wrong, with the request that made it."""

    def run(self, n: int) -> None:
        """Ask `n` times."""

        async def all_of_them() -> None:
            for _ in range(n):
                await self._ask(self._drawn())

        asyncio.run(all_of_them())

    def _drawn(self):
        rng = self._rng
        method = rng.choice(METHODS)
        template = rng.choice(self._posts if method == "POST" and rng.random() < 0.8 else self._gets)
        if rng.random() < 0.25:
            template = rng.choice(("/runs/run-2", "/runs/nowhere", "/runs", "/static", "/t")) + template

        def value(match):
            if rng.random() < 0.55:
                return str(rng.randrange(300))
            return rng.choice(NUMBERS) if rng.random() < 0.7 else rng.choice(TEXTS)

        path = re.sub(r"{\w+(:\w+)?}", value, template)
        if rng.random() < 0.12:
            at = rng.randrange(len(path) + 1)
            garbage = "".join(rng.choice(string.printable + "é‮\0") for _ in range(rng.randrange(1, 9)))
            path = path[:at] + rng.choice((garbage, "/..", "/../../etc/passwd", "//", "%2e%2e/", "\\..\\")) + path[at:]
        names = rng.sample(WORDS, rng.randrange(0, 5))
        query = "&".join(f"{name}={self._quoted(rng.choice(NUMBERS + TEXTS))}" for name in names)
        if rng.random() < 0.03:
            query = "".join(rng.choice(string.printable) for _ in range(40))
        body = rng.choice(BODIES) if method == "POST" else b""
        headers = [(b"host", rng.choice(HOSTS))]
        if method == "POST" and rng.random() < 0.95:
            headers.append((b"content-length", str(len(body)).encode()))
        for name, values in (
            (b"origin", (b"http://127.0.0.1", b"null", b"http://[", b"http://evil.example")),
            (b"sec-fetch-site", (b"same-origin", b"cross-site", b"\xff")),
            (b"content-type", (b"application/json", b"multipart/form-data", b"text/html; charset=\xff", b"image/webp")),
            (b"range", (b"bytes=0-10", b"bytes=-1", b"bytes=9-1", b"bytes=" + b"0-1," * 500, b"x")),
            (b"if-none-match", (b"*", b'"x"', b"\xff")),
            (b"if-modified-since", (b"yesterday", b"Thu, 01 Jan 1970 00:00:00 GMT")),
            (b"accept-encoding", (b"gzip", b"\xff" * 99)),
            (b"cookie", (b"a=b; \xff", b"=" * 5000)),
            (b"x-forwarded-for", (b"1.2.3.4",)),
        ):
            if rng.random() < 0.08:
                headers.append((name, rng.choice(values)))
        return method, path, query, headers, body

    @staticmethod
    def _quoted(text: str) -> str:
        return quote(text.encode("utf-8", "surrogatepass"))

    async def _ask(self, request) -> None:
        method, path, query, headers, body = request
        raw = path.encode("utf-8", "surrogatepass")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(raw.decode("utf-8", "replace")),
            "raw_path": raw,
            "query_string": query.encode("utf-8", "surrogatepass"),
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8421),
        }
        parts = [{"type": "http.request", "body": body, "more_body": False}]
        sent = []

        async def receive():
            return parts.pop() if parts else {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        shown = f"{method} {path[:200]!r}?{query[:200]} {headers} {body[:60]!r}"
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            self.wrong.append(f"{type(error).__name__}: {error} of {shown}")
            return
        status = sent[0]["status"]
        self.statuses[status] += 1
        text = b"".join(each.get("body", b"") for each in sent[1:]).decode("utf-8", "replace")
        names = {name for name, _ in sent[0]["headers"]}
        if status == 500 or status not in range(200, 600):
            self.wrong.append(f"{status} of {shown}")
        if b"content-security-policy" not in names:
            self.wrong.append(f"no policy of {shown}")
        asked = f"{path}{unquote(query)}{body!r}"
        if not path.startswith("/static/"):
            found = [leak for leak in LEAKS.findall(text) if leak not in asked]
            found += [folder for folder in self._hidden if folder in text]
            if found:
                self.wrong.append(f"{found} in the answer of {shown}")
