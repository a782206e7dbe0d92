"""Harvests of several sites and tokens, and of further images, by the real command."""

import json
import shlex

import numpy as np
import pytest
import zarr
from PIL import Image

MODEL = ["--model", "quickstart", "--layer", "4", "--rows-per-chunk", "32", "--batch-size", "16"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two folders of class folders."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, n in (("first", 50), ("second", 20)):
        for i in range(n):
            path = root / name / ("tench", "goldfish")[i % 2] / f"{name} {i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (70, 70, 3), np.uint8)).save(path)
    return root


def test_patches_of_two_sites_are_harvested_and_the_command_named_next_trains_on_them(thresher, pictures):
    sites = ["--token", "patch", "--site", "resid_post", "--site", "mlp_act"]
    done = thresher("harvest", "first", "patches.zarr", *MODEL, *sites, "--profile", cwd=pictures)
    stages = [line.split()[0] for line in done.stderr.splitlines() if "%" in line]
    assert stages == ["decode", "tower", "gather", "commit", "other"]
    group = zarr.open_group(pictures / "patches.zarr", mode="r")
    post, act = group["layers/4/resid_post/patch"], group["layers/4/mlp_act/patch"]
    per_image = group.attrs["tokens_per_image"]
    assert post.shape[0] == act.shape[0] == 50 * per_image
    assert act.shape[1] == 4 * post.shape[1]
    assert np.isfinite(post[:]).all()
    assert np.bincount(group["rows/image"][:]).tolist() == [per_image] * 50
    assert np.bincount(group["rows/token"][:])[1:].tolist() == [50] * per_image
    next_command = shlex.split(done.stdout.splitlines()[-1].removeprefix("Next: "))
    assert next_command[0] == "thresher"
    small = ["--expansion", "2", "--k", "4", "--rows", "4000", "--batch-size", "200", "--warmup", "5", "--lr", "1e-3"]
    trained = thresher(*next_command[1:], *small, cwd=pictures)
    assert "layer 4 (0-based) resid_post patch" in trained.stdout


def test_further_images_are_added_once(thresher, refused, pictures):
    thresher("harvest", "first", "grows.zarr", *MODEL, cwd=pictures)
    done = thresher("harvest", "second", "grows.zarr", *MODEL, "--append", "--json", cwd=pictures)
    result = json.loads(done.stdout)
    assert (result["n_rows"], result["n_harvested"], result["store_path"]) == (70, 20, "grows.zarr")
    refused(
        *("harvest", "second", "grows.zarr", *MODEL, "--append"),
        says="grows.zarr holds these 20 images already: nothing to append.",
        cwd=pictures,
    )
    refused(
        *("harvest", "second", "grows.zarr", *MODEL, "--append", "--overwrite"),
        status=2,
        says="append adds to the store that overwrite would replace",
        cwd=pictures,
    )
