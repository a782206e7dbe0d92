"""The commands import and export on a run of the chain, as a user gives them, and the examples of their page."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from thresher.train.models import load_sae

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"


def test_a_run_goes_to_saelens_and_back_and_is_encoded(chain, thresher, tmp_path):
    folder, _ = chain
    out, back, store = tmp_path / "out", tmp_path / "back", folder / "emoji.zarr"
    said = thresher("export", folder / "run", out, "--format", "saelens").stdout
    assert "cfg.json, sae_weights.safetensors, sparsity.safetensors (saelens)" in said
    said = thresher("import", out, back, "--store", store).stdout
    assert f"Next: thresher encode {back}" in said
    encoded = json.loads(thresher("encode", back, "--json").stdout)
    first = json.loads((folder / "run/stats.json").read_text())
    assert encoded["n_rows"] == 600
    assert encoded["mean_l0"] == pytest.approx(first["l0"]["mean"], rel=1e-3)  # k of a row, which rounding may tie
    described = json.loads(thresher("info", back, "--json").stdout)
    assert described["imported"]["format"] == "saelens"


def test_what_cannot_be_done_is_one_line_and_leaves_nothing(chain, refused, tmp_path):
    folder, _ = chain
    refused("export", folder / "run", tmp_path / "post", "--format", "post", says="post cannot hold an SAE of variant")
    assert not (tmp_path / "post").exists()
    bad = tmp_path / "bad"
    bad.mkdir()
    refused("import", bad, tmp_path / "run", says="holds no SAE of a format that is read. Looked for saelens:")
    (bad / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder"}}')
    torch.save({"encoder.weight": torch.ones(2), "x": print}, bad / "ae.pt")
    refused("import", bad, tmp_path / "run", says="wants to load")
    assert not (tmp_path / "run").exists()
    refused("pull", "not a name", tmp_path / "run", says="names no repository", status=2)


def test_an_imported_run_is_not_resumed(chain, thresher, refused, tmp_path):
    folder, _ = chain
    thresher("export", folder / "run", tmp_path / "out.pt", "--format", "saev")
    thresher("import", tmp_path / "out.pt", tmp_path / "back")
    says = "was imported (saev): it has no training to go on with"
    refused("train", folder / "emoji.zarr", tmp_path / "back", "--resume", says=says)
    refused("encode", tmp_path / "back", says="was imported without a store: name one with --store.")


def test_the_example_of_the_page_runs(chain, tmp_path):
    folder, _ = chain
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for name, place in (("run", "run"), ("store.zarr", "emoji.zarr")):
        (tmp_path / name).symlink_to(folder / place)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    assert load_sae(tmp_path / "again").d_sae == load_sae(folder / "run").d_sae


def test_the_page_names_every_format():
    text = PAGE.read_text()
    from thresher.train.formats import FORMATS

    for name in FORMATS:
        assert f"| `{name}` |" in text
