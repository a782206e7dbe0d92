"""One run of the benchmark: what can run, in turn, and what was measured."""

import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .environments import python_of
from .process import ReaderFailed, ReaderProcess, drop_caches, read_through
from .readers import BATCH, D_IN, DATA, OURS, Config, Data


class Bench:
    """Environments, data and measurements of some readers.

    Parameters
    ----------
    work
        Folder of the data.
    venvs
        Folder of the environments.
    interpreters
        Paths of Python interpreters by name, for those that are not on PATH.
    rows
        Of the source.
    """

    def __init__(self, work: Path, venvs: Path, interpreters: dict[str, str], rows: int) -> None:
        self.work, self.venvs, self.interpreters, self.rows = work, venvs, interpreters, rows
        self.failures: dict[str, str] = {}
        """Reader -> why it could not run."""
        self.passes: list[dict[str, Any]] = []
        """Reader, round, `warm` | `cold`, memory, and what its process said of its passes."""
        self.checks: dict[str, dict[str, Any]] = {}
        """Reader -> mixing and repeats."""
        self.pythons: dict[str, str] = {OURS.name: sys.executable}
        """Environment -> interpreter."""

    def prepare(self, configs: Iterable[Config]) -> None:
        """Make environments and data, and check each reader's batches."""
        self.work.mkdir(parents=True, exist_ok=True)
        for config in configs:
            try:
                self._make_environment(config)
                self._make_data(config)
                if config.is_shuffled:
                    with self._process(config) as process:
                        process.ask("open")
                        self.checks[config.name] = process.ask("check 0")
            except ReaderFailed as error:
                self._fail(config, error)

    def warm_round(self, configs: Iterable[Config], number: int) -> None:
        """Two passes of each reader that is timed, with its files in the page cache."""
        for config in self._running(configs):
            read_through(self.work / config.data)
            self._run(config, number, "warm", ("pass 0", "pass 1"))

    def cold_round(self, configs: Iterable[Config], number: int) -> bool:
        """One pass of each reader after the page cache was dropped; False where that is not permitted."""
        for config in self._running(configs):
            if not drop_caches():
                return False
            self._run(config, number, "cold", ("pass 0",))
        return True

    def clear(self) -> None:
        """Remove the data, keep the environments."""
        for made in self.work.iterdir():
            if made != self.venvs:
                shutil.rmtree(made) if made.is_dir() else made.unlink()

    def _running(self, configs: Iterable[Config]) -> list[Config]:
        return [config for config in configs if config.is_timed and config.name not in self.failures]

    def _run(self, config: Config, number: int, cache: str, commands: Sequence[str]) -> None:
        try:
            with self._process(config) as process:
                opened = process.ask("open")
                passes = [process.ask(command) for command in commands]
                row = {"reader": config.name, "round": number, "cache": cache, "open_s": opened["wall_s"]}
                self.passes.append(row | process.peak_above_imports | {"first": passes[0], "last": passes[-1]})
        except ReaderFailed as error:
            self._fail(config, error)
        else:
            note(f"{cache} {number}: {config.name}: {rate_of(passes[-1]):.2f} GB/s")

    def _fail(self, config: Config, error: ReaderFailed) -> None:
        self.failures[config.name] = str(error)
        note(f"{config.name}: {error}")

    def _process(self, config: Config | Data, data: str = "") -> ReaderProcess:
        data = config.data if isinstance(config, Config) else data
        rows = min(DATA[data].rows, self.rows)
        job = {
            "data": str(self.work / data),
            "source_rows": self.rows,
            "rows": rows,
            "rows_per_pass": min(config.rows_per_pass, rows) if isinstance(config, Config) else rows,
            "batch": BATCH,
            "threads": config.threads if isinstance(config, Config) else 1,
            "options": config.options,
        }
        return ReaderProcess(self.pythons[config.environment.name], config.script, job)

    def _make_environment(self, config: Config) -> None:
        for environment in (config.environment, DATA[config.data].environment):
            if environment.name in self.pythons:
                continue
            note(f"environment {environment.name}")
            python, reason = python_of(environment, self.venvs, self.interpreters)
            if python is None:
                raise ReaderFailed(reason)
            self.pythons[environment.name] = python

    def _make_data(self, config: Config) -> None:
        done = self.work / f"{config.data}.done"
        if done.exists() and done.read_text() == str(self.rows):
            return
        note(f"writing {self.work / config.data}")
        done.unlink(missing_ok=True)
        shutil.rmtree(self.work / config.data, ignore_errors=True)
        with self._process(DATA[config.data], config.data) as process:
            process.ask("make")
        done.write_text(str(self.rows))


def rate_of(answer: dict[str, float]) -> float:
    """GB/s of a pass, at two bytes a value."""
    return answer["rows"] * D_IN * 2e-9 / answer["wall_s"]


def note(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
