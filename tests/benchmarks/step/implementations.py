"""One optimiser step of each library, as its own training loop takes it, without its logging.

Each is built from the same planted weights and batch. Learning rates are so small that the weights stay where they
were planted. A library is imported when its step is built, from the environment that the step runs in.
"""

import contextlib
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from planted import Planted

L1, LR = 8e-5, 1e-10

Step = Callable[[], object]


@dataclass(frozen=True)
class Implementation:
    """A step, and what it is compared by.

    Parameters
    ----------
    family
        `relu`, `ghost`, `topk`, or `dense` (ReLU while half of the features fire).
    environment
        Name of the environment that it runs in.
    """

    build: Callable[[Planted], Step]
    family: str
    environment: str

    @property
    def is_dense(self) -> bool:
        """Whether half of the features are planted active."""
        return self.family == "dense"

    @property
    def share_dead(self) -> float:
        """Of the features, how many are planted dead."""
        return 0.1 if self.family == "ghost" else 0.0


def ours(variant: str, *, dead: str = "none", precision: str = "fp32") -> Callable[[Planted], Step]:
    """Thresher's step: `compute_step`, then `UnitNormAdam`."""

    def build(p: Planted) -> Step:
        from thresher.memory import keep_freed_memory
        from thresher.train.models import ReluSae, TopKSae
        from thresher.train.objective import Objective
        from thresher.train.optimiser import UnitNormAdam
        from thresher.train.step import compute_step

        keep_freed_memory()  # as training does
        weights = (p.encoder, p.b_enc, p.decoder, torch.zeros(p.x.shape[1]))
        sae = TopKSae(*weights, k=p.k) if variant == "topk" else ReluSae(*weights)
        error = "mse" if variant == "topk" else "normalized"
        objective = Objective(error=error, sparsity=L1, dead=dead, precision=precision)
        adam = UnitNormAdam(sae)
        ids = p.dead if len(p.dead) else None
        silent = torch.zeros(sae.d_sae, dtype=torch.int64)

        def step() -> None:
            z = sae.scale(p.x)
            result = compute_step(sae, z, ids, objective)
            adam.update(sae, result.gradients, LR)
            silent.add_(len(z)).masked_fill_(result.fired, 0)

        return step

    return build


def post(*, ghost: bool) -> Callable[[Planted], Step]:
    """The post's `SparseAutoencoder` and the body of its training loop."""

    def build(p: Planted) -> Step:
        sys.path.insert(0, os.environ["THRESHER_POST"])
        # What the class's file imports and the class does not use on this path.
        stub = types.ModuleType("sae_training.vit_activations_store")
        stub.ViTActivationsStore = object  # type: ignore[attr-defined]
        sys.modules["sae_training.vit_activations_store"] = stub
        from sae_training.sparse_autoencoder import SparseAutoencoder

        d_sae, d_in = p.encoder.shape
        config = types.SimpleNamespace(
            d_in=d_in, d_sae=d_sae, l1_coefficient=L1, dtype=torch.float32, device="cpu", use_ghost_grads=ghost
        )
        sae = SparseAutoencoder(config)
        _set(sae, W_enc=p.encoder.T.contiguous(), b_enc=p.b_enc, W_dec=p.decoder)
        optimizer = torch.optim.Adam(sae.parameters(), lr=LR)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        is_dead = torch.zeros(d_sae, dtype=torch.bool).index_fill_(0, p.dead, True)
        since, counts = torch.zeros(d_sae), torch.zeros(d_sae)
        sae.train()
        seen = 0

        def step() -> None:
            nonlocal since, counts, seen
            sae.set_decoder_norm_to_unit_norm()
            scheduler.step()
            optimizer.zero_grad()
            _, f, loss, mse, l1, _ = sae(p.x, is_dead)
            fired = (f > 0).float().sum(-2) > 0
            since += 1
            since[fired] = 0
            with torch.no_grad():
                counts += (f.abs() > 0).float().sum(0)
                seen += len(p.x)
                _ = counts / seen
                mse.item(), l1.item()
            loss.backward()
            sae.remove_gradient_parallel_to_decoder_directions()
            optimizer.step()

        return step

    return build


def saelens(variant: str) -> Callable[[Planted], Step]:
    """SAELens 6: `SAETrainer._train_step`."""

    def build(p: Planted) -> Step:
        from sae_lens import SAETrainer
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

        d_sae, d_in = p.encoder.shape
        sae: Any
        if variant == "topk":
            sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=p.k, use_sparse_activations=False))
        else:
            sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=d_in, d_sae=d_sae, l1_coefficient=L1))
        _set(sae, W_enc=p.encoder.T.contiguous(), b_enc=p.b_enc, W_dec=p.decoder)
        trainer = SAETrainer(
            cfg=SAETrainerConfig(
                total_training_samples=1_000_000_000,
                train_batch_size_samples=len(p.x),
                lr=LR,
                lr_end=LR,
                device="cpu",
                autocast=False,
                n_checkpoints=0,
                checkpoint_path=None,
                save_final_checkpoint=False,
                adam_beta1=0.9,
                adam_beta2=0.999,
                lr_scheduler_name="constant",
                lr_warm_up_steps=0,
                lr_decay_steps=0,
                n_restart_cycles=1,
                dead_feature_window=1_000_000,
                feature_sampling_window=1_000_000,
                logger=LoggingConfig(log_to_wandb=False),
            ),
            sae=sae,
            data_provider=iter(()),
        )
        return lambda: trainer._train_step(sae=sae, sae_in=p.x)

    return build


def dictionary_learning(variant: str) -> Callable[[Planted], Step]:
    """dictionary_learning: `Trainer.update`."""

    def build(p: Planted) -> Step:
        _without_imports("nnsight", "circuitsvis", "umap", "plotly", "wandb", "zstandard", "llvmlite", "pandas")
        d_sae, d_in = p.encoder.shape
        shared: dict[str, Any] = {"activation_dim": d_in, "dict_size": d_sae, "layer": 0, "lm_name": "", "lr": LR}
        trainer: Any
        if variant == "topk":
            from dictionary_learning.trainers.top_k import TopKTrainer

            trainer = TopKTrainer(steps=10**6, k=p.k, device="cpu", warmup_steps=1, **shared)
        else:
            from dictionary_learning.trainers.standard import StandardTrainer

            trainer = StandardTrainer(
                steps=10**6, l1_penalty=L1, device="cpu", warmup_steps=1, sparsity_warmup_steps=None, **shared
            )
        with torch.no_grad():
            trainer.ae.encoder.weight.copy_(p.encoder)
            trainer.ae.encoder.bias.copy_(p.b_enc)
            trainer.ae.decoder.weight.copy_(p.decoder.T)
        return lambda: trainer.update(1, p.x)

    return build


def overcomplete(variant: str) -> Callable[[Planted], Step]:
    """overcomplete: the body of `train_sae` with monitoring off."""

    def build(p: Planted) -> Step:
        import matplotlib as mpl

        if not hasattr(mpl.cm, "get_cmap"):  # its import needs what newer versions of matplotlib lack
            mpl.cm.get_cmap = mpl.colormaps.get_cmap
        _without_imports("timm", "cv2", "skimage", "torchvision")
        from overcomplete.sae.losses import mse_l1
        from overcomplete.sae.trackers import DeadCodeTracker

        d_sae, d_in = p.encoder.shape
        encoder = _LinearEncoder(p)
        model: Any
        if variant == "topk":
            from overcomplete.sae.topk_sae import TopKSAE

            model = TopKSAE(d_in, d_sae, top_k=p.k, encoder_module=encoder)
        else:
            from overcomplete.sae.base import SAE

            model = SAE(d_in, d_sae, encoder_module=encoder)
        with torch.no_grad():
            model.dictionary._weights.copy_(p.decoder)
        optimizer = torch.optim.Adam(model.parameters(), lr=LR)
        tracker = DeadCodeTracker(d_sae, "cpu")
        penalty = L1 if variant == "relu" else 0.0

        def step() -> None:
            optimizer.zero_grad()
            pre, z, x_hat = model(p.x)
            loss = mse_l1(p.x, x_hat, pre, z, model.get_dictionary(), penalty=penalty)
            tracker.update(z)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        return step

    return build


class _LinearEncoder(torch.nn.Module):
    """What overcomplete's encoders give: pre-codes and codes."""

    def __init__(self, p: Planted) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(p.encoder.shape[1], p.encoder.shape[0])
        with torch.no_grad():
            self.linear.weight.copy_(p.encoder)
            self.linear.bias.copy_(p.b_enc)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pre = self.linear(x)
        return pre, torch.relu(pre)


def saev(p: Planted) -> Step:
    """saev: the body of its training loop, one SAE."""
    from saev import config
    from saev.nn import SparseAutoencoder

    d_sae, d_in = p.encoder.shape
    settings = config.SparseAutoencoder(d_vit=d_in, exp_factor=d_sae // d_in, sparsity_coeff=L1, ghost_grads=False)
    sae = SparseAutoencoder(settings)
    _set(sae, W_enc=p.encoder.T.contiguous(), b_enc=p.b_enc, W_dec=p.decoder)
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR, fused=True)

    def step() -> None:
        sae.normalize_w_dec()
        _, _, loss = sae(p.x)
        loss.loss.backward()
        sae.remove_parallel_grads()
        optimizer.step()
        optimizer.zero_grad()

    return step


def sparsify(p: Planted) -> Step:
    """sparsify: the body of its trainer on one batch, by Adam in place of its signum."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its Triton decoder needs a GPU
    with contextlib.suppress(AssertionError):
        torch.cuda.is_bf16_supported = lambda *_, **__: False  # type: ignore[assignment]  # asked when it is imported
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    d_sae, d_in = p.encoder.shape
    sae = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=p.k))
    with torch.no_grad():
        sae.encoder.weight.copy_(p.encoder)
        sae.encoder.bias.copy_(p.b_enc)
        sae.W_dec.copy_(p.decoder)
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR)
    fired = torch.zeros(d_sae, dtype=torch.bool)

    def step() -> None:
        sae.set_decoder_norm_to_unit_norm()
        out = sae(p.x)
        (out.fvu + out.auxk_loss).backward()
        fired[out.latent_indices.flatten()] = True
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _set(module: torch.nn.Module, **tensors: torch.Tensor) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            getattr(module, name).copy_(tensor)


def _without_imports(*names: str) -> None:
    """Let a library be imported without packages that its step does not use, where they are not installed."""
    from importlib.abc import MetaPathFinder
    from importlib.machinery import ModuleSpec
    from importlib.util import find_spec, spec_from_loader
    from unittest.mock import MagicMock

    missing = {name for name in names if find_spec(name) is None}

    class Finder(MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
            return spec_from_loader(name, self) if name.split(".")[0] in missing else None  # type: ignore[arg-type]

        def create_module(self, spec: ModuleSpec) -> Any:
            module = MagicMock()
            module.__path__, module.__spec__ = [], spec
            return module

        def exec_module(self, module: object) -> None:
            pass

    sys.meta_path.insert(0, Finder())


OURS, TRAINERS, SAELENS, SAEV = "thresher", "trainers", "saelens", "saev"

IMPLEMENTATIONS = {
    "ours relu": Implementation(ours("relu"), "relu", OURS),
    "ours relu bf16": Implementation(ours("relu", precision="bf16"), "relu", OURS),
    "post relu": Implementation(post(ghost=False), "relu", SAELENS),
    "SAELens relu": Implementation(saelens("relu"), "relu", SAELENS),
    "dictionary_learning relu": Implementation(dictionary_learning("relu"), "relu", TRAINERS),
    "overcomplete relu": Implementation(overcomplete("relu"), "relu", TRAINERS),
    "saev relu": Implementation(saev, "relu", SAEV),
    "ours ghost": Implementation(ours("relu", dead="ghost"), "ghost", OURS),
    "post ghost": Implementation(post(ghost=True), "ghost", SAELENS),
    "ours topk": Implementation(ours("topk"), "topk", OURS),
    "ours topk bf16": Implementation(ours("topk", precision="bf16"), "topk", OURS),
    "SAELens topk": Implementation(saelens("topk"), "topk", SAELENS),
    "dictionary_learning topk": Implementation(dictionary_learning("topk"), "topk", TRAINERS),
    "overcomplete topk": Implementation(overcomplete("topk"), "topk", TRAINERS),
    "sparsify topk": Implementation(sparsify, "topk", TRAINERS),
    "ours dense": Implementation(ours("relu"), "dense", OURS),
    "post dense": Implementation(post(ghost=False), "dense", SAELENS),
    "overcomplete dense": Implementation(overcomplete("relu"), "dense", TRAINERS),
}
