"""What a bucket's service cannot or will not do: asked again where that helps, told in one line where not."""

import re
import socket
import ssl
import uuid

import aiohttp
import botocore.exceptions
import pytest
from s3_on_loopback import BUCKET, SECRET
from thresher.store import bucket as bucket_module
from thresher.store import outage
from thresher.store.bucket import Bucket
from thresher.store.bucket_errors import is_of_service, is_transient
from thresher.store.connections import RetryPolicy
from thresher.store.errors import UnreachableStoreError
from thresher.store.objects import open_objects

QUICK = RetryPolicy(first_wait_s=0.01, growth=1.5, read_timeout_s=5.0)


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
