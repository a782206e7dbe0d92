"""The real commands in subprocesses, on the embedded pictures and model."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from interrupts import hear_interrupts
from PIL import Image

THRESHER = Path(sys.executable).with_name("thresher")


def test_every_stage_says_what_it_made_and_what_comes_next(chain):
    _, out = chain
    assert "600" in out["harvest"].stdout
    assert "thresher train" in out["harvest"].stdout
    assert "thresher encode run" in out["train"].stdout
    assert "thresher stats run" in out["encode"].stdout
    assert "figures" in out["stats"].stdout


def test_the_store_is_whole_and_its_rows_are_the_tower_s(chain, thresher, inside):
    folder, _ = chain
    rows = zarr.open_array(folder / "emoji.zarr/layers/4/resid_post/cls", mode="r")
    assert rows.shape == (600, 192)
    assert rows.dtype == np.float16
    assert np.isfinite(rows[:]).all()
    assert "every checksum as committed" in thresher("verify", "emoji.zarr", cwd=folder).stdout
    described = json.loads(inside("info", "emoji.zarr", "--json", cwd=folder).stdout)
    assert described["n_rows"] == 600
    assert described["n_held_out"] == 6
    assert described["provenance"]["quick_gelu"] is False


def test_the_run_directory_holds_what_the_design_says(chain):
    folder, _ = chain
    run = folder / "run"
    for name in ("config.json", "sae.safetensors", "metrics.jsonl", "log.txt", "features.zarr", "stats.zarr"):
        assert (run / name).exists(), name
    stats = json.loads((run / "stats.json").read_text())
    for name in (
        *("n_rows", "split", "d_in", "d_sae", "mse", "normalized_mse", "explained_variance", "explained_energy"),
        *("l1", "n_dead", "l0", "uld"),
    ):
        assert name in stats, name
    assert set(stats["l0"]) >= {"mean", "median", "p99", "max"}
    assert stats["n_rows"] == 600
    group = zarr.open_group(run / "stats.zarr", mode="r")
    for name in ("n_active", "max", "mean_top", "label_entropy", "n_pos", "is_uld", "top_row", "top_value"):
        assert name in group, name
    assert group["top_row"].shape == (768, 20)


def test_the_numbers_follow_from_the_stored_activations_and_weights_in_plain_numpy(chain):
    from safetensors.numpy import load_file

    folder, _ = chain
    x = zarr.open_array(folder / "emoji.zarr/layers/4/resid_post/cls", mode="r")[:].astype(np.float64)
    w = {k: v.astype(np.float64) for k, v in load_file(folder / "run/sae.safetensors").items()}
    z = (x - w["input_mean"]) / w["input_scale"]
    pre = (z - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    keep = np.argsort(-pre, axis=1)[:, :8]
    f = np.zeros_like(pre)
    np.put_along_axis(f, keep, np.maximum(np.take_along_axis(pre, keep, 1), 0), 1)
    x_hat = (f @ w["W_dec"] + w["b_dec"]) * w["input_scale"] + w["input_mean"]
    stats = json.loads((folder / "run/stats.json").read_text())
    sse, sst = ((x - x_hat) ** 2).sum(), ((x - x.mean(0)) ** 2).sum()
    assert stats["explained_variance"] == pytest.approx(1 - sse / sst, abs=1e-4)
    assert stats["mse"] == pytest.approx(((x - x_hat) ** 2).mean(), rel=1e-3)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    assert stats["normalized_mse"] == pytest.approx(((x - x_hat) ** 2 / norm).mean(), rel=1e-3)
    assert stats["l1"] == pytest.approx(f.sum(1).mean(), rel=1e-3)
    assert stats["l0"]["mean"] == pytest.approx((f > 0).sum(1).mean(), rel=1e-3)
    group = zarr.open_group(folder / "run/stats.zarr", mode="r")
    assert (np.abs(group["n_active"][:].astype(int) - (f > 0).sum(0)) <= 1).all()
    top = -np.sort(-f, axis=0)[:20].T
    np.testing.assert_allclose(group["top_value"][:], top, rtol=1e-3, atol=1e-3)


def test_the_figures_are_pictures_with_something_in_them(chain):
    folder, _ = chain
    figures = sorted((folder / "run/figures").glob("*.png"))
    assert len(figures) >= 5
    for path in figures:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert min(pixels.shape) > 200, path
        assert pixels.std() > 5, path


def test_a_second_run_of_a_command_overwrites_nothing(chain, inside, refused, harvest_arguments, train_arguments):
    folder, _ = chain
    before = (folder / "run/sae.safetensors").read_bytes()
    inside(*harvest_arguments, "emoji.zarr", cwd=folder)  # a finished harvest has nothing to do
    refused("train", "emoji.zarr", "run", *train_arguments, says="already holds a run", cwd=folder)
    refused("encode", "run", says="--overwrite", cwd=folder)
    refused("stats", "run", says="--overwrite", cwd=folder)
    assert (folder / "run/sae.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["harvest", "nowhere", "new.zarr"], 1, "nowhere"),
        (["harvest", "quickstart", "new.zarr", "--model", "quickstart", "--layer", "9"], 2, "layer"),
        (["harvest", "quickstart", "new.zarr", "--model", "ViT-L-41"], 2, "ViT-L-14"),
        (["harvest", "quickstart", "emoji.zarr", "--model", "quickstart", "--layer", "3"], 1, "emoji.zarr"),
        (["harvest", "quickstart", "new.zarr", "--dtype", "int8"], 2, "float16"),
        (["train", "nowhere.zarr", "new-run"], 1, "nowhere.zarr"),
        (["train", "emoji.zarr", "new-run", "--k", "100000"], 2, "k"),
        (["train", "emoji.zarr", "new-run", "--resume"], 1, "new-run"),
        (["train", "emoji.zarr", "run", "--resume", "--k", "9"], 1, "k"),
        (["encode", "emoji.zarr"], 1, "run"),
        (["stats", "nowhere"], 1, "nowhere"),
        (["info", "nowhere"], 1, "nowhere"),
        (["verify", "run"], 1, "run"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(chain, arguments, status, says, refused):
    folder, _ = chain
    refused(*arguments, status=status, says=says, cwd=folder)
    assert not (folder / "new.zarr").exists()
    assert not (folder / "new-run").exists()


def test_json_is_one_document_on_stdout(chain, tmp_path, thresher, inside, harvest_arguments):
    folder, _ = chain
    for name in ("emoji.zarr", "run"):
        shutil.copytree(folder / name, tmp_path / name)
    for field, *arguments in (
        ("n_valid", *harvest_arguments, "emoji.zarr"),
        ("passes", "train", "emoji.zarr", "run", "--resume"),
        ("quality", "encode", "run", "--overwrite"),
        ("uld", "stats", "run", "--overwrite", "--no-figures"),
        ("fingerprint", "info", "emoji.zarr"),
        ("options", "info", "run"),
        ("n_chunks", "verify", "emoji.zarr"),
    ):
        # One of them with a real stdout, which libraries might write to.
        run = thresher if arguments[0] == "encode" else inside
        assert field in json.loads(run(*arguments, "--json", cwd=tmp_path).stdout), arguments
    assert {"level", "what", "detail"} == set(json.loads(inside("doctor", "--json").stdout)[0])


def test_a_damaged_store_is_refused_verify_says_where_and_repairs_it(
    chain, tmp_path, thresher, inside, refused, train_arguments
):
    folder, _ = chain
    shutil.copytree(folder / "emoji.zarr", tmp_path / "emoji.zarr")
    chunk = tmp_path / "emoji.zarr/layers/4/resid_post/cls/c/3/0"
    data = bytearray(chunk.read_bytes())
    data[1000] ^= 1
    chunk.write_bytes(data)
    done = thresher("verify", "emoji.zarr", status=1, cwd=tmp_path)
    assert "layers/4/resid_post/cls, chunk 3, rows 192 to 255" in done.stdout
    refused("train", "emoji.zarr", "run", *train_arguments, says="damaged", cwd=tmp_path)
    done = inside("verify", "emoji.zarr", "--repair", cwd=tmp_path)
    assert "rows 192 to 255: its bytes have checksum" in done.stdout
    assert "restored bit for bit" in done.stdout
    data[1000] ^= 1
    assert chunk.read_bytes() == data
    assert "every checksum as committed" in inside("verify", "emoji.zarr", cwd=tmp_path).stdout


def interrupted(command, folder, watched):
    """Exit status and stderr of a command that gets SIGINT as soon as there is something in the folder `watched`."""
    with subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=hear_interrupts
    ) as process:
        deadline = time.monotonic() + 120
        while not (watched.exists() and any(watched.iterdir())):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


@pytest.mark.parametrize("stage", ["harvest", "train"])
def test_ctrl_c_leaves_something_that_the_same_command_finishes(
    chain, tmp_path, stage, thresher, harvest_arguments, train_arguments
):
    folder, _ = chain
    if stage == "harvest":
        command, watched = [*harvest_arguments, "emoji.zarr"], tmp_path / "emoji.zarr/commits/layers/4/resid_post/cls"
        again = command
    else:
        train = [*train_arguments[:4], "--rows", "100000", *train_arguments[6:], "--checkpoint-every", "20"]
        command = ["train", folder / "emoji.zarr", "run", *train]
        watched, again = tmp_path / "run/checkpoint", ["train", folder / "emoji.zarr", "run", "--resume"]
    status, stderr = interrupted([THRESHER, *map(str, command)], tmp_path, watched)
    assert status == 1
    assert "Traceback" not in stderr
    assert "Error: " in stderr.strip().splitlines()[-1]
    thresher(*again, cwd=tmp_path)
    if stage == "harvest":
        for path in (folder / "emoji.zarr").rglob("*"):
            if path.is_file():
                other = tmp_path / "emoji.zarr" / path.relative_to(folder / "emoji.zarr")
                assert path.read_bytes() == other.read_bytes(), path
