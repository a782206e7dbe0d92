"""Runs with an SAE of known weights, and the numbers of such a run computed densely in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from thresher.store.reader import open_store
from thresher.train.models import ReluSae, SparseAutoencoder, TopKSae
from thresher.train.options import TrainOptions
from thresher.train.run_dir import create_run


@dataclass
class MadeRun:
    path: Path
    sae: SparseAutoencoder
    store_path: Path


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., MadeRun]:
    """A factory of finished runs on a store that `make_store` made; the weights are random, about a third of the
    features fire on a row and feature 3 never does."""

    def make(store_path: Path, d_sae: int = 24, *, name: str = "run", k: int | None = None, seed: int = 0) -> MadeRun:
        store = open_store(store_path)
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        d_in = store.d_in
        encoder = normal(d_sae, d_in)
        b_enc = normal(d_sae) * 0.3 - 0.8
        b_enc[3] = -1e4
        weights = (encoder, b_enc, encoder / encoder.norm(dim=1, keepdim=True) * 0.4, normal(d_in) * 0.1)
        sae = ReluSae(*weights) if k is None else TopKSae(*weights, k=k)
        config: dict[str, Any] = {
            "options": TrainOptions().to_json(),
            "site": store.sites[0].path,
            "d_in": d_in,
            "d_sae": d_sae,
            "store": {
                "path": str(store_path),
                "path_from_run": "nowhere",
                "fingerprint": store.fingerprint,
                "provenance": store.provenance.to_json(),
            },
        }
        path = tmp_path / name
        create_run(path, config, overwrite=False)
        sae.save(path / "sae.safetensors")
        return MadeRun(path, sae, store_path)

    return make


@pytest.fixture
def dense() -> Callable[[MadeRun], dict[str, np.ndarray]]:
    """Float64 reference of a run: x, f and x_hat of every physical row, NaN where invalid."""

    def compute(run: MadeRun) -> dict[str, np.ndarray]:
        store = open_store(run.store_path)
        x = store.activations(store.sites[0]).read(0, store.n_rows).astype(np.float64)
        w = {name: tensor.double().numpy() for name, tensor in run.sae.tensors().items()}
        f = np.maximum((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)
        if isinstance(run.sae, TopKSae):
            smallest_kept = np.sort(f, axis=1)[:, -run.sae.k][:, None]
            f = np.where(f >= smallest_kept, f, 0)
        return {"x": x, "f": f, "x_hat": f @ w["W_dec"] + w["b_dec"]}

    return compute
