"""`verify --repair` with a real tower: what is damaged comes again with its bytes, or is refused by the field."""

import json
import re
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from thresher.cli import main
from thresher.harvest import repair as repair_module
from thresher.harvest.options import HarvestOptions
from thresher.harvest.repair import repair
from thresher.harvest.run import harvest
from thresher.progress import Reporter
from thresher.store.parts import merge_stores
from thresher.store.verify import verify_store

VISION = {"image_size": 32, "layers": 3, "width": 32, "patch_size": 8, "head_width": 16}


@pytest.fixture
def model(models):
    return models.write("patches", vision_cfg=VISION)


@pytest.fixture
def options(model):
    def make(**changes):
        defaults = {"model": str(model), "layer": (1,), "workers": 0, "batch_size": 3, "rows_per_chunk": 5}
        return HarvestOptions(**(defaults | {"device": "cpu"} | changes))

    return make


@pytest.fixture
def folder(tmp_path, pictures):
    root = pictures.class_folders(tmp_path / "set", n_per_class=4)
    (root / "zebra" / "1.png").write_bytes(b"a text file")
    return root


def files_below(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def spoil(path, at=-9):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x55
    path.write_bytes(data)


def spoil_some_of_each(store, names, every):
    """Change a byte of every so many files; gives how many."""
    chosen = [name for name in names if name != "zarr.json"][::every]
    for name in chosen:
        spoil(store / name, len(names[name]) // 2)
    return len(chosen)


CASES = {
    "cls": {"layer": (0, 1)},
    "patches of two sites": {"token": "patch", "site": ("resid_post", "mlp_act")},
    "bf16": {"precision": "bf16", "dtype": "bfloat16"},
    "a limit": {"limit": 11, "token": "mean"},
    "compressed": {"codec": "zstd"},
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_damaged_comes_again_with_its_bytes(options, folder, tmp_path, case):
    store = tmp_path / "s.zarr"
    harvest(options(**CASES[case]), folder, store)
    whole = files_below(store)
    assert spoil_some_of_each(store, whole, 3) > 10
    report = repair(store, device="cpu")
    assert report.problems == []
    assert files_below(store) == whole
    assert "harvested again and restored bit for bit" in {done.how for done in report.repaired}


def test_only_the_damaged_windows_are_computed_and_none_without_need(options, folder, tmp_path, monkeypatch):
    store = tmp_path / "s.zarr"
    harvest(options(), folder, store)
    computed = []
    recompute = repair_module.recompute_windows
    monkeypatch.setattr(
        repair_module,
        "recompute_windows",
        lambda spec, windows, *rest, **options: computed.append(windows) or recompute(spec, windows, *rest, **options),
    )
    spoil(store / "layers/1/resid_post/cls/c/1/0")
    spoil(store / "thumbs/2/blob/c/0")
    assert repair(store, device="cpu").problems == []
    assert computed == [[1, 2]]
    spoil(store / "rows/label/c/0")
    spoil(store / "zarr.json")
    assert repair(store, device="cpu").problems == []
    assert computed == [[1, 2]]


class Listener(Reporter):
    """Keeps what it is told, and the size of each task."""

    def __init__(self):
        self.said, self.tasks, self.done = [], [], {}

    def say(self, text):
        self.said.append(text)

    @contextmanager
    def task(self, name, total, unit, *, done=0):
        self.tasks.append((name, total, unit))
        self.done[name] = done
        listener = self

        class Counted:
            def advance(self, n=1, **fields):
                listener.done[name] += n

        yield Counted()


def test_it_says_how_many_images_come_again_and_how_long_that_takes(options, folder, tmp_path):
    store = tmp_path / "s.zarr"
    harvest(options(), folder, store)  # windows of 5, 5 and 2 images, in batches of 3 and 2
    listener = Listener()
    spoil(store / "rows/image/c/0")  # known from the row order: no image is needed
    repair(store, device="cpu", reporter=listener)
    assert (listener.said, [name for name, *_ in listener.tasks]) == ([], ["verify"])
    for name in ("layers/1/resid_post/cls/c/0/0", "thumbs/2/blob/c/0"):
        spoil(store / name)
    listener = Listener()
    repair(store, device="cpu", reporter=listener)
    first, second = listener.said
    assert first == f"{store}: 7 images of 2 windows are decoded and go through the tower again."
    assert re.fullmatch(r"repair: about \d+ s left \([\d.,]+ images/s measured on one batch\)\.", second)
    assert listener.tasks[-1] == ("repair", 7, "images")
    assert listener.done["repair"] == 7


def test_without_images_or_weights_what_cannot_be_repaired_says_why(options, model, folder, tmp_path, pictures):
    store = tmp_path / "s.zarr"
    harvest(options(), folder, store)
    whole = files_below(store)
    spoil(store / "layers/1/resid_post/cls/c/1/0")
    spoil(store / "rows/image/c/0")
    shutil.move(folder, tmp_path / "moved")

    def refused() -> str:
        report = repair(store, device="cpu")
        (problem,) = report.problems
        assert (problem.array, problem.chunk, problem.rows) == ("layers/1/resid_post/cls", 1, (5, 10))
        assert [p.array for p in verify_store(store).problems] == ["layers/1/resid_post/cls"]
        return problem.what

    assert "not repaired: " in refused()
    assert "set does not exist" in refused()
    shutil.copytree(tmp_path / "moved", folder)
    (folder / "zebra" / "new.png").write_bytes(pictures.encoded(5))
    assert "keys_sha256 is" in refused()
    (folder / "zebra" / "new.png").unlink()
    state = load_file(model / "open_clip_model.safetensors")
    state["visual.ln_pre.bias"][0] += 1
    save_file(state, model / "open_clip_model.safetensors")
    assert "weights_sha256 is" in refused()
    (model / "open_clip_model.safetensors").unlink()
    assert "not repaired: " in refused()
    state["visual.ln_pre.bias"][0] -= 1
    save_file(state, model / "open_clip_model.safetensors")
    pictures_now = {path: path.read_bytes() for path in folder.rglob("*.png")}
    for path in pictures_now:
        path.write_bytes(b"gone")
    assert "readable rows, now 0" in refused()
    for path, data in pictures_now.items():
        path.write_bytes(data)
    assert repair(store, device="cpu").problems == []
    assert files_below(store) == whole


def test_parts_are_repaired_from_the_images_of_each(options, folder, tmp_path, pictures):
    more = pictures.class_folders(tmp_path / "more", n_per_class=2, classes=("emu", "zebra"))
    a, b, joined = tmp_path / "a.zarr", tmp_path / "b.zarr", tmp_path / "all.zarr"
    harvest(options(), folder, a)
    harvest(options(seed=3), more, b)
    merge_stores([str(a), str(b)], str(joined))
    whole = [files_below(path) for path in (a, b, joined)]
    for store in (a, b):
        spoil(store / "layers/1/resid_post/cls/c/0/0")
        spoil(store / "images/key_blob/c/0")
    shutil.move(more, tmp_path / "moved")
    report = repair(joined, device="cpu")
    assert {problem.part for problem in report.problems} == {"../b.zarr"}
    assert repair(joined, [str(tmp_path / "moved")], device="cpu").problems == []
    assert [files_below(path) for path in (a, b, joined)] == whole
    spoil(a / "images/key_blob/c/0")
    report = repair(
        joined, [str(tmp_path / "moved")], device="cpu"
    )  # not those of this part, which are where they were
    assert report.problems == []


def test_other_bits_are_recorded_anew_on_another_machine_and_refused_with_other_packages(
    options, folder, tmp_path, monkeypatch
):
    class Listener(Reporter):
        def __init__(self):
            self.warned = []

        def warn(self, text):
            self.warned.append(text)

    store, listener = tmp_path / "s.zarr", Listener()
    harvest(options(dtype="float32"), folder, store)
    whole = files_below(store)
    name = "layers/1/resid_post/cls/c/1/0"
    spoil(store / name, 99)
    recompute = repair_module.recompute_windows

    def elsewhere(*arguments, **named):
        for part in recompute(*arguments, **named):
            part.rows = {site: rows * np.float32(1.001) for site, rows in part.rows.items()}
            yield part

    monkeypatch.setattr(repair_module, "recompute_windows", elsewhere)
    with monkeypatch.context() as patch:
        patch.setattr(repair_module, "package_versions", lambda: {"torch": "0.1"})
        (problem,) = repair(store, device="cpu").problems
        assert "packages.torch is" in problem.what
        assert "'0.1' here: repair it with that version" in problem.what
    report = repair(store, reporter=listener, device="cpu")
    assert report.problems == []
    assert [done.how for done in report.repaired] == ["harvested again and recorded anew"]
    (warning,) = listener.warned
    assert "stored vectors of the window that no damage touched differ from the new ones by 0.001 at most" in warning
    changed = {path for path, data in files_below(store).items() if data != whole[path]}
    assert changed == {name, "commits/layers/1/resid_post/cls/1.json"}
    assert verify_store(store).problems == []


def test_the_command_repairs_says_what_and_ends_in_1_while_anything_is_damaged(options, folder, tmp_path):
    store = tmp_path / "s.zarr"
    harvest(options(), folder, store)
    whole = files_below(store)

    def run(*arguments, status=0):
        done = CliRunner().invoke(main, ["verify", str(store), "--device", "cpu", *arguments])
        assert done.exit_code == status, done.output
        return done

    assert "is whole: " in run("--repair").stdout
    spoil(store / "layers/1/resid_post/cls/c/1/0")
    spoil(store / "commits/rows/image/0.json")
    assert "2 problems" in run(status=1).stderr
    assert run("--images", "x", status=2).stderr.endswith("--images goes with --repair.\n")
    shutil.move(folder, tmp_path / "moved")
    done = run("--repair", status=1)
    assert "repaired: rows/image, chunk 0, rows 0 to 11: " in done.stdout
    assert "not repaired: " in done.stdout
    assert done.stderr.splitlines()[-1].startswith(f"Error: {store} is damaged: 1 problem; ")
    done = run("--repair", "--images", str(tmp_path / "moved"))
    assert "restored bit for bit" in done.stdout
    assert f"{store} is whole again: 1 repair; " in done.stdout
    assert files_below(store) == whole
    record = json.loads(run("--json").stdout)
    assert (record["problems"], record["repaired"]) == ([], [])
