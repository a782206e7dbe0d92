"""SAEs written here load in the library whose format it is and compute the same there, and theirs do here, to 1e-5.

THRESHER_PEERS_VENVS names a folder of virtual environments: `saelens` (`pip install sae-lens`), `sparsify`
(`pip install eai-sparsify`), `dictionary_learning` (`pip install dictionary-learning`); and `saev`, `prisma` and `post`
with the sources of saev, of ViT-Prisma and of the post's code: their releases, where they have any, are older than
their formats.
"""

import json
import os
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import peer_formats
import pytest
import torch
from hub_on_loopback import TOKEN, hub_on_loopback
from peer_formats import LIBRARIES, D, F, K
from peer_pythons import python_of
from thresher.train.formats import FORMATS, Origin, Outgoing, PlainSae, read_foreign
from thresher.train.hub import push
from thresher.train.interchange_options import PushOptions
from thresher.train.loop import train
from thresher.train.models import BatchTopKSae, GatedSae, JumpReluSae, MatryoshkaSae, ReluSae, TopKSae, load_sae
from thresher.train.options import TrainOptions

pytestmark = pytest.mark.peers

SCRIPT = Path(peer_formats.__file__)
LIMIT = 1e-5
ORIGIN = Origin(model="ViT-L-14-quickgelu", pretrained="openai", layer=22, site="resid_post", token="cls")

OURS = {
    "saelens": (
        *("relu", "relu-layer_norm", "relu-constant_norm", "topk", "batchtopk", "matryoshka", "jumprelu", "gated"),
        *("relu-transcoder", "jumprelu-transcoder"),
    ),
    "sparsify": ("topk", "topk-transcoder"),
    "dictionary_learning": ("relu", "topk", "batchtopk", "matryoshka", "jumprelu", "gated"),
    "saev": ("relu", "topk", "batchtopk"),
    "prisma": ("relu", "relu-layer_norm", "relu-constant_norm", "topk", "gated"),
    "post": ("relu",),
}
"""Variants that each format holds, and what is done to rows."""


def made(kind: str):
    """An SAE of ours, of random weights and with scaling constants."""
    rng = np.random.default_rng(7)
    variant, _, rest = kind.partition("-")

    def draw(*shape):
        return torch.tensor(rng.standard_normal(shape) * 0.4, dtype=torch.float32)

    extra = {
        "relu": {},
        "topk": {"k": K},
        "batchtopk": {"k": K, "threshold": torch.full((1,), 0.6)},
        "matryoshka": {"k": K, "threshold": torch.full((1,), 0.6), "prefixes": [8, F]},
        "jumprelu": {"log_threshold": draw(F) - 1},
        "gated": {"r_mag": draw(F), "b_mag": draw(F)},
    }[variant]
    if rest == "transcoder":
        extra |= {"centres_input": False, "output_mean": draw(D), "output_scale": draw(D).abs() + 0.5}
    elif rest:
        extra[rest] = True
    classes = (ReluSae, TopKSae, BatchTopKSae, MatryoshkaSae, JumpReluSae, GatedSae)
    cls = {each.variant: each for each in classes}[variant]
    scaling = {"input_mean": draw(D), "input_scale": draw(D).abs() + 0.5}
    return cls(draw(F, D), draw(F), draw(F, D), draw(D), **scaling, **extra)


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory):
    """Everything that one library saved and loaded, in one process of its own."""

    @cache
    def run(library: str) -> Path:
        python = python_of(library)
        folder = tmp_path_factory.mktemp(library)
        x = np.random.default_rng(1).standard_normal((64, D)) * 2 + 0.5
        np.save(folder / "x.npy", x.astype(np.float32))
        jobs = []
        for kind in OURS[library]:
            sae = made(kind)
            out = Outgoing(plain=PlainSae.of(sae), weights=b"", origin=ORIGIN, variant=sae.variant)
            (folder / kind).mkdir()
            for name, content in FORMATS[library].write(out).files.items():
                (folder / kind / name).write_bytes(content)
            jobs.append({"do": "load", "from": folder / kind, "out": folder / f"{kind}.loaded.npz"})
        for kind in LIBRARIES[library].kinds:
            place = folder / f"theirs-{kind}"
            jobs.append({"do": "save", "kind": kind, "to": place, "out": folder / f"{kind}.saved.npz"})
        text = json.dumps([{**job, "x": folder / "x.npy"} for job in jobs], default=str)
        (folder / "jobs.json").write_text(text)
        done = subprocess.run(
            [python, SCRIPT, library, folder / "jobs.json"],
            capture_output=True,
            text=True,
            timeout=500,
            env={**os.environ, "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return folder

    return run


def same(here: torch.Tensor, there: np.ndarray, factor: np.ndarray | float = 1.0) -> None:
    expected = there * factor
    scale = np.abs(expected).max()
    np.testing.assert_allclose(here.numpy() * factor, expected, rtol=LIMIT, atol=LIMIT * scale)


@pytest.mark.parametrize(("library", "kind"), [(name, kind) for name, kinds in OURS.items() for kind in kinds])
def test_what_is_exported_computes_the_same_in_the_library_that_it_is_for(library, kind, exchanged):
    folder = exchanged(library)
    sae, x = made(kind), torch.from_numpy(np.load(folder / "x.npy"))
    theirs = np.load(folder / f"{kind}.loaded.npz")
    f = sae.encode(x)
    if (library, kind) in (("dictionary_learning", "relu"), ("post", "relu")):  # decoder rows get norm 1
        f = f * (sae.W_dec * sae.output_scale).norm(dim=1)
    same(f, theirs["f"])
    same(sae(x), theirs["x_hat"])
    assert 0 < (theirs["f"] > 0).mean() < 1


THEIRS = [(name, kind) for name, library in LIBRARIES.items() for kind in library.kinds]


@pytest.mark.parametrize(("library", "kind"), THEIRS)
def test_what_a_library_saves_computes_the_same_once_imported(library, kind, exchanged):
    folder = exchanged(library)
    x, theirs = torch.from_numpy(np.load(folder / "x.npy")), np.load(folder / f"{kind}.saved.npz")
    format_, foreign = read_foreign(folder / f"theirs-{kind}")
    assert format_.name == library
    f = foreign.sae.encode(x)
    same(f, np.maximum(theirs["f"], 0))
    same(foreign.sae.decode(f, x), theirs["x_hat"])
    assert 0 < (theirs["f"] > 0).mean() < 1


def test_what_is_pushed_is_loaded_by_saelens_from_the_hub(tmp_path, make_store, monkeypatch):
    python = python_of("saelens")
    run, x = tmp_path / "run", np.random.default_rng(1).standard_normal((20, 8)).astype(np.float32)
    options = TrainOptions(k=4, expansion=2, warmup=2, batch_size=32, rows=64, device="cpu")
    train(options, make_store().path, run)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "token").write_text(TOKEN)
    script = (
        "import sys, numpy as np, torch; from sae_lens import SAE\n"
        "sae = SAE.from_pretrained('someone/sae', 'layer_1_resid_post_cls')\n"
        "np.save(sys.argv[2], sae(torch.from_numpy(np.load(sys.argv[1]))).detach().numpy())"
    )
    with hub_on_loopback() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        push(run, "someone/sae", PushOptions(token_file=str(tmp_path / "token")))
        done = subprocess.run(
            [python, "-c", script, tmp_path / "x.npy", tmp_path / "x_hat.npy"],
            capture_output=True,
            text=True,
            timeout=500,
            env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")},
        )
    assert done.returncode == 0, done.stderr[-3000:]
    same(load_sae(run)(torch.from_numpy(x)), np.load(tmp_path / "x_hat.npy"))
