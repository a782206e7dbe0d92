"""A bucket behind a proxy that refuses, breaks, delays and cuts requests by a seeded plan."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from s3_on_loopback import BUCKET, SECRET, faulty_s3, s3_server
from thresher.store.bucket import Bucket
from thresher.store.connections import RetryPolicy
from thresher.store.errors import UnreachableStoreError

pytestmark = pytest.mark.faults

IMPATIENT = RetryPolicy(first_wait_s=0.01, growth=2.0, read_timeout_s=0.5, connect_timeout_s=2.0, try_timeout_s=1.5)
MIXED = {
    **{"500": 0.06, "503": 0.06, "garbage": 0.06, "drop": 0.06, "drop_half": 0.06, "drop_answer": 0.06},
    **{"truncate": 0.06, "stall": 0.02},
}
KINDS = [*MIXED, "trickle"]


@pytest.fixture(scope="module")
def servers():
    with s3_server() as server, faulty_s3(server) as proxy:
        yield server, proxy


@pytest.fixture
def proxy(servers, monkeypatch):
    for name, value in servers[1].environment.items():
        monkeypatch.setenv(name, value)
    servers[1].plan()
    return servers[1]


@pytest.fixture
def bucket(proxy):
    return Bucket(f"s3://{BUCKET}/{uuid.uuid4().hex}/in.zarr", IMPATIENT)


@pytest.fixture
def honest(servers, bucket):
    """The same place, read past the proxy by another process's eyes."""

    def read(name: str) -> bytes | None:
        code = (
            f"import sys; from thresher.store.bucket import Bucket as B; d = B({bucket.url!r}).read_many([{name!r}])[0]"
        )
        code += "\nsys.stdout.buffer.write(b'none' if d is None else b'data' + d)"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PATH": "", **servers[0].environment},
            capture_output=True,
            timeout=60,
            check=True,
        )
        return None if done.stdout == b"none" else done.stdout[4:]

    return read


@pytest.mark.parametrize("seed", range(4))
def test_everything_comes_through_as_it_was_while_four_requests_in_ten_go_wrong(proxy, bucket, seed):
    rng = random.Random(seed)
    files = {f"c/{i}/0": rng.randbytes(rng.choice([0, 1, 100, 40_000, 300_000])) for i in range(150)}
    proxy.plan(seed=seed, faults=MIXED, in_a_row=3, stall_s=2)
    bucket.write_all({name: [data] for name, data in files.items()})
    assert bucket.read_many([*files, "none"]) == [*files.values(), None]
    assert dict(bucket.walk()) == {name: len(data) for name, data in files.items()}
    assert bucket.names("c") == {str(i) for i in range(150)}
    assert all(bucket.exists(name) for name in list(files)[:20])
    assert not any(bucket.exists(f"none/{i}") for i in range(20))
    bucket.delete(list(files)[:75])
    assert {name for name, _ in bucket.walk()} == set(list(files)[75:])
    met = {name.removeprefix("fault ") for name in proxy.counts() if name.startswith("fault ")}
    assert met == set(MIXED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", ["read", "written", "listed"])
def test_a_failure_without_end_is_one_line_within_seconds(proxy, bucket, kind, verb):
    data = bytes(200_000)
    bucket.write("c/0/0", data)
    proxy.plan(faults={kind: 1.0}, stall_s=30, bytes_per_s=20_000 if verb == "read" else 40)
    call = {
        "read": lambda: bucket.read_many(["c/0/0", "c/1/0"]),
        "written": lambda: bucket.write("c/0/0", data),
        "listed": lambda: bucket.names("c"),
    }[verb]
    start_s = time.monotonic()
    if (kind, verb) in {("truncate", "written"), ("trickle", "written")}:
        call()  # the answer to a PUT has no body that could be cut
        return
    with pytest.raises(UnreachableStoreError) as error:
        call()
    assert time.monotonic() - start_s < 12
    text = str(error.value)
    assert text.startswith(f"{bucket.url}/c")
    assert f"could not be {verb} in 5 tries over " in text
    assert f"Give the same command again when {proxy.endpoint} answers" in text
    assert "\n" not in text
    assert SECRET not in text
    assert len(text) < 500


def test_a_stalled_read_is_made_again_and_comes_through(proxy, bucket):
    bucket.write("a", b"1" * 1000)
    proxy.plan(faults={"stall": 1.0}, in_a_row=2, stall_s=30)
    start_s = time.monotonic()
    assert bucket.read("a") == b"1" * 1000
    assert 1.0 < time.monotonic() - start_s < 5  # twice the read timeout, and the waits


def test_an_answer_that_trickles_faster_than_the_limit_is_waited_for(proxy, bucket):
    bucket.write("a", b"1" * 40_000)
    proxy.plan(faults={"trickle": 1.0}, bytes_per_s=80_000)
    assert bucket.read("a") == b"1" * 40_000
    assert proxy.counts()["GET"] == 1


@pytest.mark.parametrize("kind", ["500", "drop", "drop_half", "drop_answer", "stall"])
@pytest.mark.parametrize("earlier", [None, b"old" * 50_000])
def test_a_write_whose_connection_is_lost_leaves_the_old_object_or_the_new(proxy, bucket, honest, kind, earlier):
    if earlier is not None:
        bucket.write("a", earlier)
    proxy.plan(faults={kind: 1.0}, methods=["PUT"], stall_s=3)
    new = b"new" * 70_000
    with pytest.raises(UnreachableStoreError):
        bucket.write("a", new)
    assert honest("a") == (new if kind == "drop_answer" else earlier)


def test_a_reader_beside_a_writer_sees_whole_objects_only(proxy, bucket):
    versions = [bytes([i]) * (50_000 + 1000 * i) for i in range(40)]
    bucket.write("a", versions[0])
    proxy.plan(faults={"drop_half": 0.2, "drop_answer": 0.2, "503": 0.1}, methods=["PUT"], in_a_row=3)
    ended = threading.Event()
    seen = []

    def read() -> None:
        while not ended.is_set():
            seen.append(bucket.read("a"))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for version in versions:
            bucket.write("a", version)
    finally:
        ended.set()
        thread.join()
    assert set(seen) <= set(versions)
    assert len(set(seen)) > 5


def test_a_listing_of_thousands_is_whole_though_its_pages_fail(proxy, bucket):
    names = [f"c/{i}/0" for i in range(2100)]
    bucket.write_all({name: [b"1"] for name in names})
    proxy.plan(seed=1, faults={"503": 0.3, "truncate": 0.3}, in_a_row=3)
    assert {name for name, _ in bucket.walk()} == set(names)
    assert bucket.names("c") == {str(i) for i in range(2100)}
    assert proxy.counts()["GET"] < 2 * 3 * 4  # a failed page is asked for again, not the pages before it
    bucket.delete_all()
    assert list(bucket.walk()) == []


def test_ctrl_c_ends_requests_that_wait(proxy, bucket):
    bucket.write("a", b"1")
    proxy.plan(faults={"stall": 1.0}, stall_s=60)
    code = (
        "import sys, thresher.store.bucket as b\n"
        f"bucket = b.Bucket({bucket.url!r})\n"
        "print('up', flush=True)\n"
        "try:\n    bucket.read_many(['a'] * 40)\n"
        "except KeyboardInterrupt:\n    print('stopped', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "up\n"
    deadline_s = time.monotonic() + 30
    while proxy.counts().get("in flight", 0) < 10:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    start_s = time.monotonic()
    stdout, stderr = process.communicate(timeout=30)
    assert stdout == "stopped\n", stderr
    assert stderr == ""
    assert time.monotonic() - start_s < 5


THRESHER = Path(sys.executable).with_name("thresher")
HARVEST = [
    "harvest",
    "quickstart",
    "--model",
    "quickstart",
    "--layer",
    "4",
    "--limit",
    "600",
    "--rows-per-chunk",
    "32",
]
HARVEST += ["--device", "cpu"]
TRAIN = ["--expansion", "4", "--k", "8", "--rows", "20000", "--batch-size", "200", "--warmup", "10", "--device", "cpu"]
# A stalled request is given up after a second rather than twenty.
HURRY = {"FSSPEC_S3": json.dumps({"config_kwargs": {"read_timeout": 1, "connect_timeout": 2}})}


def thresher(*arguments, environment, cwd):
    done = subprocess.run(
        [THRESHER, *arguments], env={**os.environ, **environment}, cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def unbroken(servers, tmp_path_factory):
    """What a harvest into the bucket and a run on it are, without a fault: every object, the weights, the features."""
    folder, url = tmp_path_factory.mktemp("unbroken"), f"s3://{BUCKET}/unbroken.zarr"
    environment = servers[0].environment
    for command in ([*HARVEST, url], ["train", url, "run", *TRAIN], ["encode", "run"]):
        thresher(*command, environment=environment, cwd=folder)
    return folder, url


def objects_of(bucket):
    names = [name for name, _ in bucket.walk()]
    return dict(zip(names, bucket.read_many(names), strict=True))


@pytest.mark.parametrize("seed", range(2))
def test_a_harvest_killed_at_any_moment_goes_on_to_the_same_bytes(proxy, unbroken, tmp_path, seed):
    rng = random.Random(seed)
    bucket = Bucket(f"s3://{BUCKET}/killed-{seed}.zarr")
    proxy.plan(delay_s=0.03)  # so that kills fall between the requests of one window too
    kills = 0
    while True:
        process = subprocess.Popen(
            [THRESHER, *HARVEST, bucket.url], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        done_before = proxy.counts().get("PUT", 0)
        goal = done_before + rng.randrange(20, 110)
        while process.poll() is None and proxy.counts().get("PUT", 0) < goal:
            time.sleep(0.005)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        kills += 1
    assert process.returncode == 0
    assert kills >= 2
    proxy.plan()
    assert objects_of(bucket) == objects_of(Bucket(unbroken[1]))


@pytest.mark.parametrize("seed", range(2))
def test_the_chain_passes_through_faults_to_the_same_results(proxy, unbroken, tmp_path, seed):
    kinds = dict.fromkeys(("500", "503", "garbage", "drop", "drop_half", "drop_answer", "truncate"), 0.03)
    proxy.plan(seed=seed, faults={**kinds, "stall": 0.01}, in_a_row=3, stall_s=5, delay_s=0.005)
    url, environment = f"s3://{BUCKET}/faulty-{seed}.zarr", {**proxy.environment, **HURRY}
    for command in (
        [*HARVEST, url],
        ["verify", url],
        ["info", url],
        ["train", url, "run", *TRAIN],
        ["encode", "run"],
        ["stats", "run", "--sheet-rows", "2"],
    ):
        thresher(*command, environment=environment, cwd=tmp_path)
    met = {name.removeprefix("fault ") for name in proxy.counts() if name.startswith("fault ")}
    assert met == {*kinds, "stall"}
    proxy.plan()
    assert objects_of(Bucket(url)) == objects_of(Bucket(unbroken[1]))
    folder, _ = unbroken
    assert (tmp_path / "run/sae.safetensors").read_bytes() == (folder / "run/sae.safetensors").read_bytes()
    for name in ("index/c/0", "value/c/0", "indptr/c/0", "rows/split/c/0"):
        path = Path("run/features.zarr") / name
        assert (tmp_path / path).read_bytes() == (folder / path).read_bytes()
