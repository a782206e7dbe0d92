"""Who the explorer answers, and what it lets a browser do."""

import asyncio
import json

import pytest
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.security import MAX_BODY_BYTES, Guard

POST = "/annotations"


def asked(app, method="GET", path="/", headers=(), body=b"", raw_path=None):
    """Status, headers and body of one request, without what a client library makes of it."""
    sent = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": raw_path or path.encode("utf-8", "surrogateescape"),
        "query_string": b"",
        "root_path": "",
        "headers": list(headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8421),
    }
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(each.get("body", b"") for each in sent[1:])


HOST = (b"host", b"127.0.0.1:8421")
LENGTH = (b"content-length", b"2")


@pytest.fixture(scope="module")
def app(explored):
    return make_app(explored, names=["explorer.example"])


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8421", "localhost:1", "LOCALHOST", "[::1]:8421", "explorer.example"]
)
def test_its_own_names_are_answered(app, host):
    assert asked(app, headers=[(b"host", host.encode())])[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"host", b"")],
        [(b"host", b"evil.example")],
        [(b"host", b"127.0.0.1.evil.example")],
        [(b"host", b"evil.example@127.0.0.1.evil.example")],
        [(b"host", b"127.0.0.1@evil.example")],
        [(b"host", b"localhost/.evil.example:80")],
        [(b"host", b"[::1")],
        [(b"host", b"\xff\xfe")],
        [(b"host", b"127.0.0.1"), (b"host", b"evil.example")],
        [(b"host", b"evil.example"), (b"host", b"127.0.0.1")],
    ],
)
def test_another_host_is_refused(app, headers):
    status, sent, body = asked(app, headers=headers)
    assert status == 400
    assert body == b"this explorer is reached by another name: see --allow-host.\n"
    assert b"content-security-policy" in sent


@pytest.mark.parametrize(
    "headers",
    [
        [(b"origin", b"http://evil.example")],
        [(b"origin", b"null")],
        [(b"origin", b"http://127.0.0.1:9999")],
        [(b"origin", b"")],
        [(b"origin", b"http://[")],
        [(b"sec-fetch-site", b"cross-site")],
        [(b"sec-fetch-site", b"same-site")],
        [(b"origin", b"http://127.0.0.1:8421"), (b"sec-fetch-site", b"cross-site")],
    ],
)
def test_a_page_elsewhere_may_not_write(app, headers):
    assert asked(app, "POST", POST, [HOST, LENGTH, *headers], b"{}")[0] == 403


def test_its_own_pages_may_write(app):
    reached = []

    async def inner(scope, receive, send):
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b""})

    own = [(b"origin", b"http://127.0.0.1:8421"), (b"sec-fetch-site", b"same-origin")]
    status, sent, _ = asked(Guard(inner), "POST", POST, [HOST, LENGTH, *own], b"{}")
    assert (status, reached) == (200, [POST])
    assert b"content-security-policy" in sent


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 411),
        ([(b"transfer-encoding", b"chunked")], 411),
        ([(b"content-length", b"-1")], 411),
        ([(b"content-length", b"ten")], 411),
        ([(b"content-length", "²".encode("latin-1"))], 411),
        ([(b"content-length", b"1" * 5000)], 413),
        ([(b"content-length", str(MAX_BODY_BYTES + 1).encode())], 413),
        ([(b"content-length", b"2"), (b"transfer-encoding", b"chunked")], 411),
    ],
)
def test_a_body_says_how_long_it_is_and_is_bounded(app, headers, status):
    assert asked(app, "POST", POST, [HOST, *headers], b"{}")[0] == status


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "GARBAGE"])
def test_other_methods_are_refused(app, method):
    assert asked(app, method, headers=[HOST])[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/....//app.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/..\\app.py",
        "/static/base.css/../../app.py",
        "/static/base.css\0.js",
        "/static/" + "a" * 5000,
        "/static/",
        "/static",
        "/../../../etc/passwd",
        "/t/../../etc/passwd",
        "/t/1/../../../config.json",
        "/runs/../config.json",
        "/runs/run/config.json",
        "//etc/passwd",
        "/f/%2e%2e",
        "/f/1e3",
        "/f/-1",
        "/t/" + "9" * 400,
        "/f/" + "9" * 400,
        "/i/" + "9" * 400,
    ],
)
def test_no_path_reaches_the_file_system(app, path):
    """As a server unescapes it, and as it stands."""
    from urllib.parse import unquote

    for each in (path, unquote(path)):
        status, sent, body = asked(app, path=each, headers=[HOST])
        assert status in (404, 405), each
        assert b"root:" not in body
        assert b"def " not in body
        assert b"Traceback" not in body
        assert b"content-security-policy" in sent


def test_every_answer_says_what_its_page_may_do(client):
    for path in ("/", "/index.json", "/static/base.css", "/static/api.js", "/t/0", "/nowhere", "/f/99999999"):
        answer = client.get(path)
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'self'"
        assert "unsafe" not in json.dumps(policy)
        assert policy["frame-ancestors"] == policy["object-src"] == policy["base-uri"] == "'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in answer.headers
