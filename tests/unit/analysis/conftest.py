"""Runs with an SAE of known weights, and the numbers of such a run computed densely in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from thresher.analysis.by_feature import write_by_feature
from thresher.analysis.encoded_block import EncodedBlock
from thresher.analysis.features import HELD_OUT, NOT_ENCODED, TRAIN, FeaturesInfo, read_entries
from thresher.analysis.row_columns import RowColumns
from thresher.progress import Reporter
from thresher.store.loading import plan_loading
from thresher.store.reader import open_store
from thresher.train.configuration import describe_store
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

        d_in = store.activations(store.sites[0]).d_in
        encoder = normal(d_sae, d_in)
        b_enc = normal(d_sae) * 0.3 - 0.8
        b_enc[3] = -1e4
        weights = (encoder, b_enc, encoder / encoder.norm(dim=1, keepdim=True) * 0.4, normal(d_in) * 0.1)
        sae = ReluSae(*weights) if k is None else TopKSae(*weights, k=k)
        path = tmp_path / name
        config: dict[str, Any] = {
            "options": TrainOptions().to_json(),
            "site": store.sites[0].path,
            "d_in": d_in,
            "d_sae": d_sae,
            "store": {**describe_store(store, path), "path_from_run": "nowhere"},
            "loading": plan_loading([store.activations(store.sites[0])], 1024).to_json(),
        }
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


@pytest.fixture
def write_features(tmp_path: Path) -> Callable[..., Path]:
    """A factory of `features.zarr` with given activations: `f` (n, d_sae), rows of NaN are not encoded."""

    def write(
        f: np.ndarray, labels: np.ndarray, *, split: np.ndarray | None = None, name: str = "features.zarr"
    ) -> Path:
        path = tmp_path / name
        group = zarr.open_group(str(path), mode="w", zarr_format=3)
        valid = np.isfinite(f).all(axis=1)
        split = np.where(valid, TRAIN if split is None else split, NOT_ENCODED).astype(np.uint8)
        row, index = np.nonzero(np.where(valid[:, None], f, 0))
        counts = np.bincount(row, minlength=len(f))
        numbers = np.ones(int(valid.sum()))
        columns = RowColumns(group, len(f))
        columns.append(
            split,
            labels.astype(np.int32),
            EncodedBlock(
                counts=counts[valid],
                index=index.astype(np.uint32),
                value=f[row, index].astype(np.float32),
                x=np.ones((len(numbers), 1), np.float32),
                norm=numbers,
                sse=numbers,
                cosine=numbers.astype(np.float32),
                l1=numbers,
            ),
        )
        columns.close()
        n_active = np.bincount(index, minlength=f.shape[1])
        info = FeaturesInfo(
            n_rows=len(f),
            n_encoded=int(valid.sum()),
            n_train=int((split == TRAIN).sum()),
            n_held_out=int((split == HELD_OUT).sum()),
            n_unreadable=int((~valid).sum()),
            nnz=len(index),
            d_in=1,
            d_sae=f.shape[1],
            split="all",
            row_start=0,
            row_stop=len(f),
            held_out_start=None,
            store="a store",
            store_fingerprint="of it",
            n_store_parts=1,
            is_training_store=True,
            site="layers/1/resid_post/cls",
            sae_sha256="0" * 64,
            thresher="0",
        )
        with Reporter().task("", 0, "") as task:
            write_by_feature(group, tmp_path, n_active, len(f), read_entries(group, info), task)
        group.attrs.update(info.to_attributes())
        return path

    return write
