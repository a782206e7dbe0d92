"""A sweep by the command line: trained, failing in part, compared, described, and named where one run is wanted."""

import json


def options(chain_arguments):
    """Those of the chain's training but for `--k` and `--rows`."""
    at = {name: chain_arguments.index(name) for name in ("--k", "--rows")}
    skipped = {place for index in at.values() for place in (index, index + 1)}
    return [each for place, each in enumerate(chain_arguments) if place not in skipped]


def test_a_sweep_from_training_to_its_figure(chain, thresher, inside, refused, train_arguments, tmp_path):
    store = chain[0] / "emoji.zarr"
    arguments = [*options(train_arguments), "--rows", "4000"]
    trained = thresher("train", store, "sweep", *arguments, "--k", "2,4", "--k", "8", cwd=tmp_path)
    assert trained.stdout.startswith("sweep: 3 of 3 SAEs trained, 20 steps")
    assert trained.stdout.splitlines()[-1] == "Next: thresher sweep sweep"
    assert [line.split()[:2] for line in trained.stderr.splitlines()[-4:]] == [
        ["run", "step"], ["k=2", "20"], ["k=4", "20"], ["k=8", "20"],
    ]  # fmt: skip
    compared = inside("sweep", "sweep", cwd=tmp_path)
    assert [line.split()[0] for line in compared.stdout.splitlines()] == [
        *("k", "2", "4", "8"), "sweep/sweep.tsv", "sweep/figures/pareto.png",
    ]  # fmt: skip
    listed = json.loads(inside("sweep", "sweep", "--json", cwd=tmp_path).stdout)
    assert [each["varies"] for each in listed["saes"]] == [{"k": 2}, {"k": 4}, {"k": 8}]
    assert "3 finished" in inside("info", "sweep", cwd=tmp_path).stdout
    refused(
        "stats", "sweep", says="sweep is a sweep of several SAEs: name one of them, such as sweep/k=2", cwd=tmp_path
    )
    encoded = inside("encode", "sweep", cwd=tmp_path).stdout
    assert [f"Next: thresher stats sweep/k={k}" in encoded for k in (2, 4, 8)] == [True] * 3


def test_a_member_that_fails_is_told_at_the_end_and_the_status_is_1(chain, refused, train_arguments, tmp_path):
    store = chain[0] / "emoji.zarr"
    arguments = [*options(train_arguments), "--rows", "4000", "--lr", "1e-3,1e30"]
    line = refused("train", store, "sweep", *arguments, says="1 of 2 SAEs stopped: lr=1e+30: ", cwd=tmp_path)
    assert line.endswith("--resume tries them again.")
    assert (tmp_path / "sweep/lr=0.001/sae.safetensors").exists()


def test_values_that_cannot_be_are_one_line_and_nothing_is_written(chain, refused, tmp_path):
    store = chain[0] / "emoji.zarr"
    for arguments, says in (
        (["--k", "16,x"], "'x' is not a valid integer"),
        (["--k", "16,,32"], "holds an empty value"),
        (["--batch-size", "64,128"], "--batch-size 64,128: SAEs that are trained together share it"),
        (["--k", "2,0"], "--k 0 must be at least 1"),
        (["--k", "2,9999"], "--k 9999 exceeds"),
        (["--k", "2,4", "--l1", "0.1"], "is for variant relu or gated"),
    ):
        refused("train", store, "sweep", *arguments, says=says, status=2, cwd=tmp_path)
    assert not (tmp_path / "sweep").exists()
