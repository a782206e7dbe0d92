"""An S3 server on loopback for tests: moto's, alone or behind a proxy that injects faults."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROXY = Path(__file__).with_name("faulty_proxy.py")
BUCKET = "bucket"
SECRET = "hush-this-is-secret"
_START_S = 60.0


@dataclass(frozen=True)
class S3:
    """An endpoint, and what a process needs in its environment to use it."""

    port: int

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test-key-id",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            # Nothing of the machine that the tests run on.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@dataclass(frozen=True)
class FaultyS3(S3):
    """An endpoint whose faults can be chosen."""

    def plan(self, **plan: object) -> None:
        """Set the faults from now on: see `faulty_proxy.py`."""
        self._ask("PUT", "plan", json.dumps(plan).encode())

    def counts(self) -> dict[str, int]:
        """What happened since the plan was set."""
        return self._ask("GET", "counts")

    def _ask(self, method: str, what: str, body: bytes | None = None) -> dict[str, int]:
        request = urllib.request.Request(f"{self.endpoint}/-/{what}", data=body, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@contextmanager
def s3_server() -> Iterator[S3]:
    """moto's server in a process of its own, with one bucket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, str(port)]
    with _running(command, stdout=subprocess.DEVNULL) as process:
        deadline_s = time.monotonic() + _START_S
        while True:
            try:
                request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
                urllib.request.urlopen(request, timeout=10).close()
                break
            except OSError:
                assert process.poll() is None, "moto's server ended"
                assert time.monotonic() < deadline_s, "moto's server does not answer"
                time.sleep(0.05)
        yield S3(port)


@contextmanager
def faulty_s3(server: S3) -> Iterator[FaultyS3]:
    """The same server seen through a proxy that injects faults."""
    with _running([sys.executable, str(PROXY), str(server.port)], stdout=subprocess.PIPE) as process:
        yield FaultyS3(int(process.stdout.readline()))


@contextmanager
def _running(command: list[str], *, stdout: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=30)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def end_with_parent() -> None:
    """End this process when the one that started it is gone: its end of the pipe is then closed."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    from moto.server import main

    end_with_parent()
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
