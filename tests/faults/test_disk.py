"""A full disk and a disk that cannot be written to, at each stage: nothing is lost, and room is all that is needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults

THRESHER = Path(sys.executable).with_name("thresher")
HARVEST = ["harvest", "quickstart", "disk/s.zarr", "--model", "quickstart", "--layer", "1", "--limit", "400"]
HARVEST += ["--rows-per-chunk", "32", "--workers", "1", "--device", "cpu"]
TRAIN = ["--expansion", "4", "--k", "8", "--rows", "20000", "--batch-size", "200", "--warmup", "10"]
TRAIN += ["--device", "cpu", "--checkpoint-every", "20"]


def thresher(*arguments, cwd, status=0):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [THRESHER, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""


def mount(folder, options):
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    """A folder on a disk of its own, `disk`, whose size `resize` sets."""
    folder = tmp_path / "disk"
    mount(folder, "size=64m")
    yield folder
    subprocess.run(["umount", folder], check=True)


def resize(disk, options):
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def fill(disk, left_bytes):
    """Leave this much room, as another user's file would."""
    stat = os.statvfs(disk)
    room = stat.f_bavail * stat.f_frsize - left_bytes
    (disk / "filler").write_bytes(b"x" * max(0, room))


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store and a finished run, on a disk with room."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "disk").mkdir()
    thresher(*HARVEST, cwd=folder)
    thresher("train", "disk/s.zarr", "disk/run", *TRAIN, cwd=folder)
    return folder


def copy(made, disk, *names):
    for name in names:
        subprocess.run(["cp", "-r", made / "disk" / name, disk / name], check=True)


def test_a_harvest_that_does_not_fit_is_refused_before_it_starts(made, disk, tmp_path):
    resize(disk, "size=1m")
    assert "the disk has" in thresher(*HARVEST, cwd=tmp_path, status=1)
    assert not (disk / "s.zarr").exists()


def test_a_harvest_on_a_disk_that_fills_meanwhile_goes_on_once_there_is_room(made, disk, tmp_path):
    # What is left holds the first windows. The check before the start is passed on a disk that is then filled.
    stopper = tmp_path / "part.py"
    stopper.write_text(
        "import sys\n"
        "from thresher.store.writer import WindowWriter\n"
        "whole = WindowWriter.write\n"
        "def write(self, settle):\n"
        "    if self.number == 4:\n"
        "        import os\n"
        "        stat = os.statvfs('disk')\n"
        "        open('disk/filler', 'wb').write(b'x' * (stat.f_bavail * stat.f_frsize - 20_000))\n"
        "    return whole(self, settle)\n"
        "WindowWriter.write = write\n"
        "from thresher.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, stopper, *HARVEST], cwd=tmp_path, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "No space left on device: make room, then give the same command again." in done.stderr
    (disk / "filler").unlink()
    thresher(*HARVEST, cwd=tmp_path)
    assert files(disk / "s.zarr") == files(made / "disk/s.zarr")


def test_a_training_that_does_not_fit_is_refused_before_it_starts(made, disk, tmp_path):
    copy(made, disk, "s.zarr")
    fill(disk, 3_000_000)
    assert "make room" in thresher("train", "disk/s.zarr", "disk/run", *TRAIN, cwd=tmp_path, status=1)
    assert not (disk / "run").exists()


def test_encode_on_a_full_disk_leaves_the_run_as_it_was(made, disk, tmp_path):
    copy(made, disk, "s.zarr", "run")
    before = files(disk / "run")
    fill(disk, 100_000)
    last = thresher("encode", "disk/run", cwd=tmp_path, status=1)
    assert "room" in last
    assert files(disk / "run") == before
    (disk / "filler").unlink()
    thresher("encode", "disk/run", cwd=tmp_path)


def test_encode_whose_disk_fills_meanwhile_keeps_the_features_that_were_there(made, disk, tmp_path):
    copy(made, disk, "s.zarr", "run")
    thresher("encode", "disk/run", "--rows", "5", cwd=tmp_path)
    before = files(disk / "run")
    code = (
        "import sys, thresher.analysis.encode as encode\n"
        "whole = encode._check_space\n"
        "def check(*given):\n"
        "    whole(*given)\n"
        "    import os\n"
        "    stat = os.statvfs('disk')\n"
        "    open('disk/filler', 'wb').write(b'x' * (stat.f_bavail * stat.f_frsize - 30_000))\n"
        "encode._check_space = check\n"
        "from thresher.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "encode", "disk/run", "--overwrite"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr.splitlines()[-1]
    after = files(disk / "run")
    assert {name: after[name] for name in before} == before
    assert all(str(name).startswith(".features.zarr.tmp/") for name in set(after) - set(before))
    (disk / "filler").unlink()
    thresher("encode", "disk/run", "--overwrite", cwd=tmp_path)


def test_stats_on_a_full_disk_is_finished_by_the_same_command(made, disk, tmp_path):
    copy(made, disk, "s.zarr", "run")
    thresher("encode", "disk/run", cwd=tmp_path)
    fill(disk, 50_000)
    assert "room" in thresher("stats", "disk/run", cwd=tmp_path, status=1)
    assert not (disk / "run/stats.json").exists()
    (disk / "filler").unlink()
    thresher("stats", "disk/run", cwd=tmp_path)
    assert (disk / "run/figures/scatter.png").exists()


@pytest.mark.parametrize("stage", ["harvest", "train", "encode", "stats"])
def test_a_disk_that_cannot_be_written_to_is_said_in_one_line_at_each_stage(made, disk, tmp_path, stage):
    copy(made, disk, *{"harvest": (), "train": ("s.zarr",)}.get(stage, ("s.zarr", "run")))
    if stage == "stats":
        thresher("encode", "disk/run", cwd=tmp_path)
    before = files(disk)
    resize(disk, "ro")
    arguments = {"harvest": HARVEST, "train": ["train", "disk/s.zarr", "disk/run", *TRAIN]}
    command = arguments.get(stage, [stage, "disk/run"])
    last = thresher(*command, cwd=tmp_path, status=1)
    assert last.startswith("Error: ")
    assert "Read-only file system: name a place that can be written to." in last
    assert files(disk) == before
    thresher(
        "verify" if stage != "harvest" else "doctor", *(["disk/s.zarr"] if stage != "harvest" else []), cwd=tmp_path
    )
    resize(disk, "rw")
    thresher(*command, cwd=tmp_path)
