"""A bucket holds a store's objects as a folder does: written, read, listed, deleted, by threads and processes."""

import ast
import functools
import http.server
import os
import pickle
import subprocess
import sys
import threading
import time
import uuid
from importlib.machinery import ModuleSpec

import fsspec.config
import pytest
from s3_on_loopback import BUCKET, SECRET
from thresher.store import connections
from thresher.store.bucket import Bucket
from thresher.store.bucket_errors import without_secrets
from thresher.store.connections import RetryPolicy
from thresher.store.errors import StoreError
from thresher.store.objects import LocalFolder, open_objects

FILES = {
    "zarr.json": b"{}",
    "layers/22/resid_post/cls/c/0/0": bytes(range(256)) * 40,
    "layers/22/resid_post/cls/c/10/0": b"",
    "layers/22/resid_post/cls/zarr.json": b"\x00\xff",
    "commits/metadata.json": b"{}\n",
}


QUICK = RetryPolicy(first_wait_s=0.01, growth=1.5, read_timeout_s=5.0)


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
