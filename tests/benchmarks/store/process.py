"""A reader's process seen from the benchmark: told what to do, its memory watched from outside."""

import contextlib
import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent
_SAMPLE_S = 0.01


class ReaderFailed(Exception):
    """A reader that ended; its message is the last line of its standard error."""


class ReaderProcess:
    """One reader at work.

    Parameters
    ----------
    python
        Interpreter of its environment.
    script
        Name of a file beside this one.
    job
        Fields of its `passes.Job`.
    """

    def __init__(self, python: str, script: str, job: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [python, str(SCRIPTS / script), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._errors: list[str] = []
        self._reading = threading.Thread(target=self._collect_errors, daemon=True)
        self._reading.start()
        self._imports = self._answer()
        self._peak = dict(self._imports)
        self._ended = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def ask(self, command: str) -> dict[str, Any]:
        """Have a command of `passes.serve` done.

        Raises
        ------
        ReaderFailed
            When the process ends instead.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; its standard error says why
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        return self._answer()

    @property
    def peak_above_imports(self) -> dict[str, int]:
        """Most bytes so far, its workers' included, above those after the imports: see `passes.memory_bytes`."""
        return {name: max(0, self._peak[name] - self._imports[name]) for name in self._peak}

    def close(self) -> None:
        """End the process."""
        self._ended.set()
        self._watching.join()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> "ReaderProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # libraries that print on standard output are passed over
            if line.startswith('{"'):
                return json.loads(line)
        self._process.wait()
        self._reading.join()
        lines = [line for line in self._errors if line.strip()]
        raise ReaderFailed(lines[-1].strip() if lines else f"ended with status {self._process.returncode}")

    def _collect_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors = [*self._errors[-40:], line]

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            try:
                pids = [self._process.pid, *_children(self._process.pid)]
                now = _status(pids[0]) if len(pids) == 1 else _shares(pids)
            except (FileNotFoundError, ProcessLookupError, KeyError):
                continue  # a process that ended meanwhile, or a machine without /proc
            for name, size in now.items():
                self._peak[name] = max(self._peak[name], size)


def _children(pid: int) -> list[int]:
    """Processes that any thread of this one started, theirs not."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _status(pid: int) -> dict[str, int]:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    kib = {name: int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmRSS")}
    return {"own": (kib["RssAnon"] + kib["RssShmem"]) * 1024, "resident": kib["VmRSS"] * 1024}


def _shares(pids: list[int]) -> dict[str, int]:
    """Of several processes, each its share of what they share."""
    total = {"own": 0, "resident": 0}
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        fields = dict(line.split(":", 1) for line in lines)
        kib = {name: int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem", "Pss")}
        total["own"] += (kib["Pss_Anon"] + kib["Pss_Shmem"]) * 1024
        total["resident"] += kib["Pss"] * 1024
    return total


def read_through(path: Path) -> None:
    """Bring a file, or a folder's files, into the page cache."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        with open(file, "rb", buffering=0) as opened:
            buffer = bytearray(8 << 20)
            while opened.readinto(buffer):
                pass


def drop_caches() -> bool:
    """Empty the page cache, so that the next pass is cold; False where this user may not."""
    subprocess.run(["sync"], check=True)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    time.sleep(0.5)
    return True
