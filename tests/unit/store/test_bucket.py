import ast
import functools
import http.server
import os
import pickle
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from importlib.machinery import ModuleSpec

import aiohttp
import botocore.exceptions
import fsspec.config
import pytest
from s3_on_loopback import BUCKET, SECRET, faulty_s3, s3_server
from thresher.store import bucket as bucket_module
from thresher.store import connections, outage
from thresher.store.bucket import Bucket
from thresher.store.bucket_errors import is_of_service, is_transient, without_secrets
from thresher.store.connections import RetryPolicy
from thresher.store.errors import StoreError, UnreachableStoreError
from thresher.store.objects import LocalFolder, open_objects

FILES = {
    "zarr.json": b"{}",
    "layers/22/resid_post/cls/c/0/0": bytes(range(256)) * 40,
    "layers/22/resid_post/cls/c/10/0": b"",
    "layers/22/resid_post/cls/zarr.json": b"\x00\xff",
    "commits/metadata.json": b"{}\n",
}
QUICK = RetryPolicy(first_wait_s=0.01, growth=1.5, read_timeout_s=5.0)


@pytest.fixture(scope="module")
def servers():
    with s3_server() as server, faulty_s3(server) as proxy:
        yield server, proxy


@pytest.fixture
def s3(servers, monkeypatch):
    """The server itself, named in the environment."""
    for name, value in servers[0].environment.items():
        monkeypatch.setenv(name, value)
    return servers[0]


@pytest.fixture
def proxy(servers, monkeypatch):
    """The server behind a proxy without a plan, named in the environment."""
    for name, value in servers[1].environment.items():
        monkeypatch.setenv(name, value)
    servers[1].plan()
    return servers[1]


@pytest.fixture(params=["local", "memory", "s3"])
def place(request, tmp_path):
    """A new empty place of each kind."""
    name = uuid.uuid4().hex
    if request.param == "local":
        return LocalFolder(tmp_path / name)
    if request.param == "s3":
        request.getfixturevalue("s3")
        return open_objects(f"s3://{BUCKET}/{name}/in.zarr")
    return open_objects(f"memory://{name}/in.zarr")


def fill(place):
    place.write_all({name: [data[:3], memoryview(data)[3:]] for name, data in FILES.items()})
    return place


def test_what_is_written_is_read_back(place):
    fill(place)
    for name, data in FILES.items():
        assert place.read(name) == data
        assert type(place.read(name)) is bytes
    assert place.read_many([*FILES, "commits/none.json"]) == [*FILES.values(), None]
    assert place.read_many([]) == []
    place.write("zarr.json", b"other")
    assert place.read("zarr.json") == b"other"


def test_what_is_missing_is_said_to_be_missing(place):
    for _ in range(2):  # of an empty place, then of one with objects
        for name in ("none", "layers/22/none", "zarr.json/below"):
            with pytest.raises((FileNotFoundError, NotADirectoryError)):
                place.read(name)
            assert not place.exists(name)
        assert place.names("none") == set()
        assert list(place.walk("none")) == []
        place.delete(["none", "layers/none"])
        fill(place)


def test_folders_and_objects_are_listed(place):
    assert not place.exists()
    fill(place)
    assert place.exists()
    assert place.exists("layers/22")
    assert place.exists("layers/22/resid_post/cls/zarr.json")
    assert not place.exists("layers/2")
    assert place.names() == {"zarr.json", "layers", "commits"}
    assert place.names("layers/22/resid_post/cls") == {"c", "zarr.json"}
    assert place.names("layers/22/resid_post/cls/c") == {"0", "10"}
    assert dict(place.walk()) == {name: len(data) for name, data in FILES.items()}
    assert dict(place.walk("commits")) == {"commits/metadata.json": 3}
    assert place.size_bytes == sum(map(len, FILES.values()))


def test_a_child_is_a_place_of_its_own(place):
    child = fill(place).child("layers/22")
    assert child.read("resid_post/cls/zarr.json") == b"\x00\xff"
    assert child.names() == {"resid_post"}
    assert {name for name, _ in child.walk()} == {
        "resid_post/cls/zarr.json",
        *(f"resid_post/cls/c/{i}/0" for i in (0, 10)),
    }
    child.delete_all()
    assert place.names() >= {"zarr.json", "commits"}
    assert [name for name, _ in place.walk("layers")] == []


def test_what_is_deleted_is_gone_and_nothing_else(place):
    fill(place)
    place.delete(["commits/metadata.json", "none"])
    assert {name for name, _ in place.walk()} == set(FILES) - {"commits/metadata.json"}
    place.delete_all(keep=["zarr.json"])
    assert list(place.walk()) == [("zarr.json", 2)]
    place.delete_all()
    assert list(place.walk()) == []


def test_a_place_with_the_name_of_another_as_its_beginning_is_left_alone(s3):
    name = uuid.uuid4().hex
    first, second = Bucket(f"s3://{BUCKET}/{name}"), Bucket(f"s3://{BUCKET}/{name}-2/")
    fill(first)
    fill(second)
    first.delete_all()
    assert dict(second.walk()) == {name: len(data) for name, data in FILES.items()}
    assert second.url.endswith("-2/")
    assert second.child("commits").url.endswith("-2/commits")


def test_nothing_is_remembered_of_an_earlier_listing(s3):
    name = uuid.uuid4().hex
    mine, theirs = (Bucket(f"s3://{BUCKET}/{name}") for _ in range(2))
    assert mine.names() == set()
    theirs.write("a/b", b"1")
    assert mine.names() == {"a"}
    assert mine.exists("a")
    theirs.write("a/b", b"22")
    assert list(mine.walk()) == [("a/b", 2)]
    theirs.delete(["a/b"])
    assert not mine.exists("a/b")


def test_a_bucket_has_neither_lock_nor_limit(s3):
    bucket = Bucket(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    locks = [bucket.lock(), bucket.lock()]
    for lock in locks:
        lock.close()
    assert bucket.free_bytes() is None
    assert bucket.local is None


def test_an_object_travels_in_one_request_each_way(proxy):
    bucket = Bucket(f"s3://{BUCKET}/{uuid.uuid4().hex}", QUICK)
    data = os.urandom(12 << 20)  # s3fs by itself may cut uploads, and asks for the size before it reads
    bucket.write("a", data)
    assert bucket.read("a") == data
    assert {name: n for name, n in proxy.counts().items() if name in ("GET", "PUT", "POST", "HEAD")} == {
        "GET": 1,
        "PUT": 1,
    }


def test_requests_run_side_by_side_and_boundedly(proxy):
    bucket = Bucket(f"s3://{BUCKET}/{uuid.uuid4().hex}", QUICK)
    names = [str(i) for i in range(100)]
    bucket.write_all({name: [name.encode()] for name in names})
    proxy.plan(delay_s=0.2)
    start_s = time.monotonic()
    assert bucket.read_many(names) == [name.encode() for name in names]
    assert time.monotonic() - start_s < 5  # 20 s one after the other
    assert 16 <= proxy.counts()["in flight"] <= connections.IN_FLIGHT


def test_objects_are_read_by_many_threads_at_once(s3):
    bucket = fill(Bucket(f"s3://{BUCKET}/{uuid.uuid4().hex}"))
    wrong = []

    def read():
        for _ in range(5):
            if bucket.read_many(list(FILES)) != list(FILES.values()):
                wrong.append(1)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_it_travels_to_other_processes_without_credentials(s3):
    bucket = fill(Bucket(f"s3://{BUCKET}/{uuid.uuid4().hex}", QUICK))
    sent = pickle.dumps(bucket)
    assert SECRET.encode() not in sent
    assert pickle.loads(sent).read("zarr.json") == b"{}"
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).names())"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], input=sent, capture_output=True, timeout=60)
    assert done.stderr == b""  # sessions are closed: no ResourceWarning, no `Unclosed client session`
    assert ast.literal_eval(done.stdout.decode()) == {"zarr.json", "layers", "commits"}


def test_a_forked_process_reads_and_its_parent_goes_on(s3):
    bucket = fill(Bucket(f"s3://{BUCKET}/{uuid.uuid4().hex}"))
    assert bucket.read("zarr.json") == b"{}"
    pid = os.fork()
    if pid == 0:
        good = bucket.read_many(list(FILES)) == list(FILES.values())
        bucket.write("of the child", b"1")
        os._exit(0 if good else 1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert bucket.read("of the child") == b"1"


def test_new_credentials_in_the_environment_are_used(servers, s3, monkeypatch):
    bucket = fill(Bucket(f"s3://{BUCKET}/{uuid.uuid4().hex}", QUICK))
    assert bucket.exists("zarr.json")
    servers[1].plan()
    monkeypatch.setenv("AWS_ENDPOINT_URL", servers[1].endpoint)
    assert bucket.exists("zarr.json")
    assert servers[1].counts()["HEAD"] == 1


@pytest.mark.parametrize("verb", ["exists", "read", "read_many", "write", "names", "walk", "delete_all"])
def test_a_bucket_that_is_not_there_is_one_line_at_once(proxy, verb):
    bucket = Bucket("s3://no-such-bucket/in.zarr")  # with the waits of real use
    calls = {
        "read_many": lambda: bucket.read_many(["a"]),
        "write": lambda: bucket.write("a", b"1"),
        "walk": lambda: list(bucket.walk()),
        "delete_all": bucket.delete_all,
    }
    call = calls.get(verb) or (lambda: getattr(bucket, verb)("a"))
    with pytest.raises(UnreachableStoreError) as error:
        call()
    text = str(error.value)
    assert text.startswith("s3://no-such-bucket/in.zarr")
    assert f"there is no bucket no-such-bucket at {proxy.endpoint}. Make it, or set AWS_ENDPOINT_URL" in text
    assert proxy.counts().get("GET", 0) + proxy.counts().get("PUT", 0) == 1


@pytest.mark.parametrize("verb", ["exists", "read", "write", "names", "delete"])
def test_a_refusal_is_one_line_at_once_and_says_which_credentials(proxy, verb):
    bucket = Bucket(f"s3://{BUCKET}/in.zarr")
    bucket.write("a", b"1")
    proxy.plan(faults={"403": 1.0})
    arguments = {"write": ("a", b"1"), "delete": (["a"],)}.get(verb, ("a",))
    with pytest.raises(UnreachableStoreError) as error:
        getattr(bucket, verb)(*arguments)
    text = str(error.value)
    assert text.startswith(f"s3://{BUCKET}/in.zarr/a may not be ")
    assert f"the service at {proxy.endpoint} answers 403" in text
    assert "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to an account that may" in text
    assert "\n" not in text
    assert SECRET not in text
    assert sum(n for name, n in proxy.counts().items() if name in ("GET", "PUT", "HEAD", "POST")) == 1


def test_missing_credentials_are_one_line(s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UnreachableStoreError, match=r"no credentials were found\. Set AWS_ACCESS_KEY_ID"):
        Bucket(f"s3://{BUCKET}/in.zarr").read("a")


def test_a_profile_that_is_not_there_is_one_line(s3, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UnreachableStoreError, match="no credentials were found"):
        Bucket(f"s3://{BUCKET}/in.zarr").read("a")


def test_a_service_that_fails_for_a_while_is_asked_again_and_no_oftener_than_said(proxy):
    bucket = Bucket(f"s3://{BUCKET}/{uuid.uuid4().hex}", QUICK)
    proxy.plan(faults={"503": 1.0}, in_a_row=4)
    bucket.write("a", b"1")
    assert bucket.read("a") == b"1"
    assert proxy.counts() == {"PUT": 5, "GET": 5, "fault 503": 8, "in flight": 1, "bytes out": 1}
    proxy.plan(faults={"500": 1.0})
    with pytest.raises(UnreachableStoreError) as error:
        bucket.read("a")
    assert proxy.counts()["GET"] == 5  # not the 125 of three libraries' retries within each other
    assert str(error.value).startswith(f"{bucket.url}/a could not be read in 5 tries over 0 s: the service answers 500")


def test_waits_grow_are_drawn_and_are_bounded():
    policy = RetryPolicy()
    waits = [[policy.wait_s(n) for n in range(1, policy.tries)] for _ in range(200)]
    assert max(map(sum, waits)) <= 0.25 * (1 + 4 + 16 + 64)
    assert min(map(sum, waits)) >= 0.125 * (1 + 4 + 16 + 64)
    assert len({round(sum(wait), 3) for wait in waits}) > 100


def test_an_endpoint_where_nobody_listens_is_one_line(monkeypatch, servers):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        for name, value in servers[0].environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:{SECRET}@127.0.0.1:{port}")
        with pytest.raises(UnreachableStoreError) as error:
            Bucket(f"s3://{BUCKET}/in.zarr", QUICK).read("a")
    text = str(error.value)
    assert "could not be read in 5 tries" in text
    assert f"http://127.0.0.1:{port} answers, or correct AWS_ENDPOINT_URL" in text
    assert SECRET not in text


def test_a_service_that_does_not_answer_is_told_of_while_it_is_asked_again(monkeypatch, servers, caplog):
    monkeypatch.setattr(outage, "PATIENCE_S", 0.1)
    for name, value in servers[0].environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    bucket = Bucket(f"s3://{BUCKET}/in.zarr", RetryPolicy(first_wait_s=0.01, growth=4.0))
    with pytest.raises(UnreachableStoreError):
        bucket.read_many(["a", "b", "c"])
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("thresher")]
    assert 1 <= len(lines) <= 4  # for twelve tries that failed and are made again
    begin = (
        rf"s3://{BUCKET}/in\.zarr/[abc] could not be read yet: .*http://127\.0\.0\.1:9.*\. Try [2345] of 5 in \d+ s\."
    )
    assert all(re.fullmatch(begin, line) for line in lines), lines
    assert SECRET not in caplog.text


def test_a_service_that_has_never_answered_is_told_of_in_the_midst_of_its_first_try(proxy, monkeypatch, caplog):
    monkeypatch.setattr(bucket_module, "PATIENCE_S", 0.1)
    bucket = Bucket(f"s3://{BUCKET}/in.zarr", RetryPolicy(first_wait_s=0.013))  # a connection of its own
    proxy.plan(faults={"stall": 1.0}, stall_s=0.5, in_a_row=1)
    bucket.exists("a")
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("thresher")]
    assert lines[0] == (
        f"s3://{BUCKET}/in.zarr/a could not be read yet: {proxy.endpoint} has not answered for 0 s; "
        "it is asked 5 times."
    )
    caplog.clear()
    proxy.plan(delay_s=0.3)  # once it has answered, a long answer is only long
    bucket.exists("a")
    assert not caplog.records


def test_the_wait_for_a_service_is_told_once_it_is_long_and_not_oftener_than_every_two_seconds(monkeypatch, caplog):
    now = 100.0
    monkeypatch.setattr(outage.time, "monotonic", lambda: now)
    service = outage.Outage()
    service.failed(100.0, 1.5, "a wait that is short")
    now = 101.5
    service.failed(100.0, 4.0, "told at 101.5")
    service.failed(101.0, 4.0, "another request, at the same time")
    now = 105.5
    service.failed(100.0, 16.0, "told at 105.5")
    service.answered()
    now = 110.0
    service.failed(109.9, 1.0, "the beginning of another outage")
    now = 111.9
    service.failed(111.8, 1.0, "told at 111.9: it began at 109.9")
    assert [record.getMessage()[:8] for record in caplog.records] == ["told at "] * 3


@pytest.mark.parametrize(
    ("name", "says"),
    [("my bucket", "holds ' '"), ("a:b", "holds ':'"), ("x" * 300, "has 300 characters")],
)
def test_a_name_that_no_bucket_can_have_is_said_in_one_short_line(s3, name, says):
    with pytest.raises(UnreachableStoreError) as error:
        Bucket(f"s3://{name}/in.zarr").exists("a")
    assert f"the bucket's name {says}; it is made of at most 63 letters" in str(error.value)
    assert "regex" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://", "names no bucket"),
        ("s3:///key", "names no bucket"),
        (f"s3://key:{SECRET}@bucket/x", "carries credentials"),
        (f"https://me:{SECRET}@host/x.zarr", "carries credentials"),
        (f"https://host/x.zarr?X-Amz-Signature={SECRET}", "no query"),
        ("simplecache::s3://bucket/x", "chained"),
        ("nonsense://bucket/x", "nonsense:// is not a scheme that fsspec knows"),
        ("gs://bucket/x", "gs:// needs gcsfs: pip install 'gcsfs'"),
    ],
)
def test_a_url_that_cannot_be_used_is_a_wrong_argument(url, says):
    with pytest.raises(ValueError, match=says) as error:
        open_objects(url)
    assert SECRET not in str(error.value)


def test_a_service_that_is_connected_to_at_once_and_is_not_there_is_one_line():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"ftp://127.0.0.1:{nobody.getsockname()[1]}/x"
        with pytest.raises(UnreachableStoreError, match=rf"{url} cannot be reached: .*refused\. Check its address\."):
            open_objects(url).exists("zarr.json")


def test_without_s3fs_the_line_says_what_to_install(monkeypatch):
    real = connections.find_spec

    def find_spec(name: str) -> ModuleSpec | None:
        return None if name == "s3fs" else real(name)

    monkeypatch.setattr(connections, "find_spec", find_spec)
    with pytest.raises(ValueError, match=r"^s3:// needs s3fs: pip install 'thresher\[s3\]'$"):
        open_objects("s3://bucket/x")


def test_what_is_served_over_http_is_read_and_not_written(tmp_path):
    fill(LocalFolder(tmp_path / "in.zarr"))
    handler = functools.partial(_Silent, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = open_objects(f"http://127.0.0.1:{server.server_port}/in.zarr")
        assert place.read_many([*FILES, "none"]) == [*FILES.values(), None]
        assert place.exists("commits/metadata.json")
        assert not place.exists("none")
        assert place.names() == {"zarr.json", "layers", "commits"}
        assert place.names("layers/22/resid_post/cls/c") == {"0", "10"}
        assert place.names("none") == set()
        assert dict(place.walk()) == {name: len(data) for name, data in FILES.items()}
        assert dict(place.child("commits").walk()) == {"metadata.json": 3}
        for change in (lambda: place.write("a", b"1"), lambda: place.delete(["zarr.json"])):
            with pytest.raises(StoreError, match="can only be read"):
                change()
        connections.close_connections()
        server.shutdown()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_place_where_files_are_seen_half_written_is_not_written_to(tmp_path):
    place = open_objects(f"local://{tmp_path}/in.zarr")
    with pytest.raises(StoreError, match="may be seen half-written"):
        place.write("a", b"1")
    fill(LocalFolder(tmp_path / "in.zarr"))
    assert place.read("zarr.json") == b"{}"


def _answer(status: int, code: str) -> botocore.exceptions.ClientError:
    return botocore.exceptions.ClientError(
        {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}, "GetObject"
    )


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (_answer(500, "InternalError"), True),
        (_answer(502, "502"), True),
        (_answer(503, "SlowDown"), True),
        (_answer(429, "TooManyRequests"), True),
        (_answer(400, "RequestTimeout"), True),
        (_answer(400, "BadDigest"), True),
        (_answer(400, "XAmzContentSHA256Mismatch"), True),
        (_answer(400, "InvalidArgument"), False),
        (_answer(400, "ExpiredToken"), False),
        (_answer(403, "AccessDenied"), False),
        (_answer(403, "SignatureDoesNotMatch"), False),
        (_answer(404, "NoSuchBucket"), False),
        (_answer(404, "NoSuchKey"), False),
        (_answer(501, "NotImplemented"), False),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"), True),
        (botocore.exceptions.ConnectTimeoutError(endpoint_url="http://x"), True),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"), True),
        (botocore.exceptions.ConnectionClosedError(endpoint_url="http://x"), True),
        (botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2), True),
        (botocore.exceptions.SSLError(endpoint_url="https://x", error=ssl.SSLError("certificate")), False),
        (botocore.exceptions.NoCredentialsError(), False),
        (aiohttp.ClientPayloadError("half"), True),
        (aiohttp.ServerDisconnectedError(), True),
        (aiohttp.ClientResponseError(None, (), status=503), True),
        (aiohttp.ClientResponseError(None, (), status=403), False),
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (socket.gaierror("no such host"), True),
        (FileNotFoundError(), False),
        (PermissionError(), False),
    ],
)
def test_what_is_tried_again(error, passes):
    assert is_transient(error) == passes
    assert is_of_service(error)
    wrapped = OSError("s3fs says so in its own words")
    wrapped.__cause__ = error
    assert is_transient(wrapped) == passes


def test_a_mistake_of_this_program_is_not_blamed_on_the_service():
    assert not is_of_service(TypeError("missing argument"))
    assert not is_transient(TypeError("missing argument"))


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_that_is_no_url_is_named(monkeypatch, name):
    monkeypatch.setenv(name, "127.0.0.1:9000")
    with pytest.raises(ValueError, match=f"{name} is '127.0.0.1:9000': it begins with http://"):
        open_objects("s3://bucket/x").exists("zarr.json")


def test_fsspecs_own_configuration_names_service_and_credentials_before_the_aws_variables(servers, s3, monkeypatch):
    configured = {}
    fsspec.config.set_conf_env(
        configured,
        {
            "FSSPEC_S3_ENDPOINT_URL": servers[0].endpoint,
            "FSSPEC_S3_KEY": "test-key-id",
            "FSSPEC_S3_SECRET": SECRET,
            "FSSPEC_S3": '{"config_kwargs": {"s3": {"addressing_style": "path"}}}',
        },
    )
    monkeypatch.setattr(fsspec.config, "conf", fsspec.config.conf | configured)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    place = fill(Bucket(f"s3://{BUCKET}/{uuid.uuid4().hex}", QUICK))
    assert place.read_many(list(FILES)) == list(FILES.values())


def test_texts_lose_what_is_secret_in_urls():
    text = f'to "http://me:{SECRET}@host:1/a?X-Amz-Signature={SECRET}&b=1" and s3://{SECRET}@b/c'
    assert without_secrets(text) == 'to "http://host:1/a" and s3://b/c'
