"""`thresher explore` as it is typed: what it says, what it refuses, how it ends."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest
from click.testing import CliRunner
from interrupts import hear_interrupts
from thresher.analysis.explorer import serve
from thresher.cli import main

COMMAND = [sys.executable, "-m", "thresher", "explore"]


def refused(*arguments):
    """Exit status and what was said, of a command that must not start to serve."""
    done = CliRunner().invoke(main, ["explore", "--no-browser", *map(str, arguments)])
    assert "Traceback" not in done.output
    return done.exit_code, " ".join(done.output.split())


@contextmanager
def started(*arguments):
    """The command in a process of its own, and the address that it said."""
    process = subprocess.Popen(
        [*COMMAND, "--no-browser", "--port", "0", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    try:
        line = process.stdout.readline()
        match = re.search(r"http://\S+/", line)
        assert match, (line, process.stderr.read())
        yield process, match[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "line"),
    [(signal.SIGINT, "Error: stopped by the user."), (signal.SIGTERM, "Error: stopped by SIGTERM.")],
)
def test_it_serves_until_it_is_stopped(run_path, number, line):
    with started(run_path, "--quiet") as (process, address):
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert answer.status == 200
            assert "server" not in answer.headers
        waiting = socket.create_connection(("127.0.0.1", int(address.rstrip("/").rpartition(":")[2])))
        waiting.sendall(b"GET / HTTP/1.1\r\n")  # a visitor in the middle of a request
        process.send_signal(number)
        _, said = process.communicate(timeout=8)
        waiting.close()
        assert process.returncode == 1
        assert said.strip() == line


COMPUTING_FOR_EVER = """
import sys, threading, torch
from thresher.analysis.explorer import phrases
from thresher.cli import main

def rank(run, phrase):
    a = torch.rand(500, 500)
    print("computing", flush=True)
    while True:
        a = (a @ a).softmax(0)

phrases.rank = rank
main()
"""


def test_it_ends_within_two_seconds_though_the_tower_computes(run_path):
    arguments = ["explore", str(run_path), "--no-browser", "--port", "0", "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-c", COMPUTING_FOR_EVER, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    try:
        address = re.search(r"http://127.0.0.1:(\d+)/", process.stdout.readline())
        visitor = socket.create_connection(("127.0.0.1", int(address[1])))
        visitor.sendall(b"GET /features?q=~heart HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert process.stdout.readline() == "computing\n"
        start_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        took_s = time.monotonic() - start_s
        visitor.close()
    finally:
        process.kill()
        process.communicate()
    assert said.strip() == "Error: stopped by the user."
    assert process.returncode == 1
    assert took_s < 2 * (1 + max(0, os.getloadavg()[0] / os.cpu_count() - 1))  # of a machine that is not shared


def test_the_next_port_is_taken_where_one_is_in_use(run_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        listening = serve.listen(serve.ExploreOptions(port=port))
        with listening:
            assert port < listening.getsockname()[1] <= port + 20


def test_answers_go_out_at_once():
    """asyncio does so only for sockets that name their protocol."""
    with serve.listen(serve.ExploreOptions(port=0)) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_no_port_at_all_is_one_line(run_path, monkeypatch):
    monkeypatch.setattr(serve, "_PORTS_TRIED", 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, said = refused(run_path, "--port", port)
    assert status == 1
    assert said == f"Error: no port from {port} on can be had at 127.0.0.1 (Address already in use)."


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--host", "0.0.0.0"], 2, "say how they reach it with --allow-host NAME"),
        (["--host", "no such host", "--allow-host", "x"], 1, "can be had at no such host"),
        (["--host", "203.0.113.7", "--allow-host", "x"], 1, "can be had at 203.0.113.7 (Cannot assign"),
        (["--port", "70000"], 2, "--port must be 0 to 65535, not 70000"),
        (["--port", "-1"], 2, "--port must be 0 to 65535, not -1"),
        (["--port", "x"], 2, "is not a valid integer"),
        (
            ["--allow-host", "http://lab"],
            2,
            "a name or an address alone, without http://, port or path, not 'http://lab'",
        ),
        (["--allow-host", "lab:8421"], 2, "not 'lab:8421'"),
        (["--allow-host", "*"], 2, "not '*'"),
        (["--allow-host", ""], 2, "not ''"),
    ],
)
def test_an_address_that_cannot_be_is_refused(run_path, options, status, said):
    found, output = refused(run_path, *options)
    assert (found, said in output) == (status, True), output


def test_what_is_no_run_is_refused(run_path, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_path, copy)
    shutil.rmtree(copy / "stats.zarr")
    (copy / "stats.json").unlink()
    assert refused(copy) == (1, f"Error: {copy} holds no statistics: run `thresher stats` first.")
    assert "is not a run directory" in refused(tmp_path)[1]
    assert refused(tmp_path / "nowhere")[0] == 1
    assert refused(run_path / "config.json")[0] == 1
    (tmp_path / "sweep.json").write_text("{}")
    status, said = refused(tmp_path)
    assert status == 1
    assert "is a sweep of several SAEs: name one of them" in said
    assert refused()[0] == 2


def test_an_export_of_damaged_statistics_is_one_line(run_path, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_path, copy)
    (copy / "stats.zarr" / "labels" / "indptr" / "zarr.json").write_bytes(b"rubbish")
    status, said = refused(copy, "--export", tmp_path / "site", "--features", "1,2", "--rounds", "0")
    assert status == 1
    assert "Error: The statistics are damaged, labels" in said
    assert said.endswith("run `thresher stats --overwrite`.")
    assert not (tmp_path / "site").exists()


def test_without_the_extra_it_says_how_to_have_it(run_path, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else object())
    assert refused(run_path) == (1, "Error: explore needs uvicorn: pip install 'thresher[explorer]'.")


def test_its_help_loads_nothing_that_serves():
    code = (
        "import sys\nfrom thresher.cli import main\n"
        "try: main(['explore', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'zarr', 'numpy', 'starlette', 'uvicorn', 'jinja2', 'PIL', 'dask', 'matplotlib'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_the_first_page_loads_neither_torch_nor_what_draws_figures(run_path):
    code = (
        "import sys\nfrom starlette.testclient import TestClient\n"
        "from thresher.analysis.explorer.app import make_app\nfrom thresher.analysis.explorer.several import Explorer\n"
        f"app = make_app(Explorer([{str(run_path)!r}]))\n"
        "client = TestClient(app, base_url='http://127.0.0.1')\n"
        "for path in ('/', '/features', '/f/0', '/i/0', '/c/0', '/notes'): assert client.get(path).status_code == 200\n"
        "print('heavy:', sorted({'torch', 'dask', 'matplotlib', 'open_clip', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"
