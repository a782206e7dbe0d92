"""Several processes harvest into one store: its bytes are those of one process, also after one of them was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

THRESHER = Path(sys.executable).with_name("thresher")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
# What torchrun sets where nothing is chosen stands for "nothing is chosen"; a choice of the test's caller must not.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


class Source:
    """A folder of pictures beside the config of a small tower."""

    def __init__(self, folder: Path, n: int, unreadable: tuple[int, ...] = ()) -> None:
        self.folder, self.n = folder, n
        rng = np.random.default_rng(0)
        for i in range(n):
            path = folder / "images" / f"class {i % 7}" / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
            if i in unreadable:
                path.write_bytes(b"not a picture")
        vision = {"image_size": 32, "layers": 4, "width": 96, "head_width": 32, "patch_size": 8}
        text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
        config = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
        (folder / "model.json").write_text(json.dumps(config))

    def start(
        self, store: Path, n_processes: int, *options: object, as_command: bool = False, threads: int | None = None
    ) -> subprocess.Popen:
        """A harvest in so many processes; 1 is one without torchrun. Each is given so many threads; None: no choice."""
        harvest = ["harvest", "images", store, "--model", "model.json", "--pretrained", "none", "--layer", 2]
        harvest += ["--rows-per-chunk", 16, "--batch-size", 8, *options]
        command = [THRESHER]
        if n_processes > 1:
            how = ["--no-python", THRESHER] if as_command else ["-m", "thresher"]
            command = [*TORCHRUN, "--nproc-per-node", n_processes, *how]
        environment = ENVIRONMENT if threads is None else {**ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
        with open(store.with_suffix(".log"), "w") as log:
            return subprocess.Popen(
                [*map(str, command), *map(str, harvest)], cwd=self.folder, env=environment, stdout=log, stderr=log
            )


def log_of(store: Path) -> str:
    return store.with_suffix(".log").read_text()


def require_same_bytes(one: Path, other: Path) -> None:
    names = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def of_rank(torchrun: subprocess.Popen, rank: int) -> int:
    """The process that torchrun started as this rank."""
    for child in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"torchrun has no rank {rank}")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Source:
    return Source(tmp_path_factory.mktemp("small"), 70, unreadable=(3, 40))


@pytest.fixture(scope="module")
def larger(tmp_path_factory) -> Source:
    return Source(tmp_path_factory.mktemp("larger"), 640, unreadable=(3, 300))


@pytest.fixture(scope="module")
def whole(larger, tmp_path_factory):
    """The stores that one process made of the larger source, by token."""
    made = {}

    def store_of(token: str) -> Path:
        if token not in made:
            made[token] = tmp_path_factory.mktemp("whole") / f"{token}.zarr"
            assert larger.start(made[token], 1, "--token", token, "--workers", 1).wait(timeout=300) == 0
        return made[token]

    return store_of


def test_two_processes_write_the_bytes_of_one(small, tmp_path):
    options = ("--token", "patch", "--site", "resid_post", "--site", "mlp_act", "--workers", 2)
    running = [small.start(tmp_path / f"{n}.zarr", n, *options) for n in (1, 2)]
    for n, process in zip((1, 2), running, strict=True):
        assert process.wait(timeout=120) == 0, log_of(tmp_path / f"{n}.zarr")
    require_same_bytes(tmp_path / "1.zarr", tmp_path / "2.zarr")
    said = log_of(tmp_path / "2.zarr")
    assert said.count("harvested in") == 1  # one of them speaks
    assert "1,120 rows, 1,088 of readable images" in said
    assert " 70 harvested in" in said
    assert ", in 2 processes" in said
    assert said.count("2 of 70 images could not be read") == 1


@pytest.mark.faults
@pytest.mark.parametrize("token", ["cls", "patch", "all"])
def test_three_processes_write_the_bytes_of_one(larger, whole, tmp_path, token):
    process = larger.start(tmp_path / "s.zarr", 3, "--token", token, "--workers", 1, as_command=True)
    assert process.wait(timeout=300) == 0, log_of(tmp_path / "s.zarr")
    require_same_bytes(whole(token), tmp_path / "s.zarr")


@pytest.mark.faults
def test_threads_that_the_user_chose_are_those_of_all_processes_together(small, tmp_path):
    options = ("--token", "all", "--dtype", "float32", "--workers", 0, "--rows-per-chunk", 32, "--batch-size", 32)
    for n in (1, 2):
        process = small.start(tmp_path / f"{n}.zarr", n, *options, threads=4 // n)
        assert process.wait(timeout=300) == 0, log_of(tmp_path / f"{n}.zarr")
    require_same_bytes(tmp_path / "1.zarr", tmp_path / "2.zarr")


@pytest.mark.faults
@pytest.mark.parametrize("token", ["cls", "patch"])
@pytest.mark.parametrize("killed", [0, 1, 2])
def test_a_process_killed_amid_three_leaves_no_trace(larger, whole, tmp_path, token, killed):
    options = ("--token", token, "--workers", 1)
    broken = tmp_path / "broken.zarr"
    process = larger.start(broken, 3, *options)
    committed = broken / "commits" / "rows" / "valid"
    deadline = time.monotonic() + 120
    wanted = 6 if token == "cls" else 6 * 16  # six of the forty windows, of one chunk for each token
    while not (committed.exists() and len(list(committed.iterdir())) >= wanted) and time.monotonic() < deadline:
        assert process.poll() is None, log_of(broken)
        time.sleep(0.005)
    os.kill(of_rank(process, killed), signal.SIGKILL)
    assert process.wait(timeout=120) == 1
    said = log_of(broken)
    errors = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert errors == ([] if killed == 0 else ["Error: stopped by SIGTERM."])  # torchrun says which process was killed
    assert "Signal 9 (SIGKILL)" in said
    n_done = len(list(committed.iterdir()))
    assert n_done < 40 * wanted / 6
    again = larger.start(broken, 3 if killed else 2, *options)  # also by another number of processes
    assert again.wait(timeout=300) == 0, log_of(broken)
    assert " 640 harvested" not in log_of(broken)  # not all over again
    require_same_bytes(whole(token), broken)


@pytest.mark.faults
def test_one_process_error_ends_all_and_is_told_once(small, tmp_path):
    process = small.start(tmp_path / "s.zarr", 2, "--strict", "--workers", 0)
    assert process.wait(timeout=120) == 1
    said = log_of(tmp_path / "s.zarr")
    errors = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, said
    assert "cannot be read: not an image in a known format. Without --strict" in errors[0]


@pytest.mark.faults
def test_an_error_of_all_processes_is_told_once(small, tmp_path):
    process = small.start(tmp_path / "s.zarr", 3, "--layer", 99)
    assert process.wait(timeout=120) == 1
    said = log_of(tmp_path / "s.zarr")
    assert said.count("layer 99 is out of range") == 1, said
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.faults
def test_ctrl_c_is_told_once_and_the_same_command_goes_on(larger, tmp_path):
    store = tmp_path / "s.zarr"
    options = ("--token", "patch", "--workers", 1)
    process = larger.start(store, 2, *options)
    committed = store / "commits" / "rows" / "valid"
    while not (committed.exists() and len(list(committed.iterdir())) >= 32):
        assert process.poll() is None, log_of(store)
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) != 0
    said = log_of(store)
    assert said.count("The same command goes on there.") == 1, said
    assert said.count("Error: ") == 1, said
    assert larger.start(store, 2, *options).wait(timeout=300) == 0, log_of(store)
    assert "640 images could not be read" in log_of(store)


@pytest.mark.faults
def test_appended_images_are_shared_too(small, larger, tmp_path):
    for n in (1, 2):
        first = small.start(tmp_path / f"{n}.zarr", n)
        assert first.wait(timeout=120) == 0, log_of(tmp_path / f"{n}.zarr")
        more = larger.start(tmp_path / f"{n}.zarr", n, "--append", "--workers", 1)
        assert more.wait(timeout=300) == 0, log_of(tmp_path / f"{n}.zarr")
        assert "710 rows" in log_of(tmp_path / f"{n}.zarr")
    require_same_bytes(tmp_path / "1.zarr", tmp_path / "2.zarr")
