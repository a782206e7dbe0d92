"""Loss and gradients of batches by another library's own training code, in float64: run in that library's Python.

usage: python peer_gradients.py LIBRARY FOLDER

FOLDER holds VARIANT.in.npz, or VARIANT-dead.in.npz: `x` (n, d), of a transcoder the target `y` (n, d), `dead` (F,)
bool, numbers of the objective, and the weights by our names, W_enc (d, F), W_dec (F, d). Each gets an .out.npz of the
loss and the gradients by the same names.
"""

import sys
import types
from pathlib import Path

import numpy as np
import torch

torch.set_default_dtype(torch.float64)


def of_saelens(variant: str, given: dict[str, np.ndarray], x: torch.Tensor, dead: torch.Tensor) -> dict:
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.matryoshka_batchtopk_sae import (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    n_features = given["W_dec"].shape[0]
    shared = {"d_in": x.shape[1], "d_sae": n_features, "dtype": "float64", "apply_b_dec_to_input": True}
    top = {"k": int(given["k"]), "aux_loss_coefficient": float(given["aux"]), "rescale_acts_by_decoder_norm": False}
    names = {"b_enc": "b_enc"}
    penalty = float(given["sparsity"])
    match variant:
        case "relu":
            sae = StandardTrainingSAE(StandardTrainingSAEConfig(**shared, l1_coefficient=penalty))
        case "topk":
            sae = TopKTrainingSAE(TopKTrainingSAEConfig(**shared, **top, use_sparse_activations=False))
        case "batchtopk":
            sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**shared, **top, use_sparse_activations=False))
        case "matryoshka":
            config = MatryoshkaBatchTopKTrainingSAEConfig(
                **shared, **top, use_sparse_activations=False, matryoshka_widths=given["prefixes"].tolist()
            )
            sae = MatryoshkaBatchTopKTrainingSAE(config)
        case "jumprelu":
            config = JumpReLUTrainingSAEConfig(
                **shared,
                l0_coefficient=penalty,
                jumprelu_bandwidth=float(given["bandwidth"]),
                pre_act_loss_coefficient=float(given["aux"]) or None,
            )
            sae = JumpReLUTrainingSAE(config)
            sae.threshold.data = sae.threshold.data.double()
            names["threshold"] = "threshold"
        case "gated":
            sae = GatedTrainingSAE(GatedTrainingSAEConfig(**shared, l1_coefficient=penalty))
            names = {"b_gate": "b_enc", "r_mag": "r_mag", "b_mag": "b_mag"}
    names |= {"W_enc": "W_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
    for theirs, ours in names.items():
        getattr(sae, theirs).data = torch.from_numpy(given[ours].copy())
    output = sae.training_forward_pass(
        TrainStepInput(
            sae_in=x,
            coefficients={"l1": penalty, "l0": penalty},
            dead_neuron_mask=dead if dead.any() else None,
            n_training_steps=1,
            is_logging_step=False,
        )
    )
    output.loss.backward()
    return {"loss": output.loss.item()} | {ours: getattr(sae, theirs).grad for theirs, ours in names.items()}


def of_dictionary_learning(variant: str, given: dict[str, np.ndarray], x: torch.Tensor, dead: torch.Tensor) -> dict:
    try:
        import nnsight  # noqa: F401
    except ImportError:  # what it reads language models with; no trainer uses it
        sys.modules["nnsight"] = types.ModuleType("nnsight")
        sys.modules["nnsight"].LanguageModel = object
    from dictionary_learning.trainers import (
        BatchTopKTrainer,
        GatedSAETrainer,
        JumpReluTrainer,
        StandardTrainer,
        TopKTrainer,
    )
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

    n_features, d = given["W_dec"].shape
    shared = {"steps": 10_000, "activation_dim": d, "dict_size": n_features, "layer": 0, "lm_name": "", "device": "cpu"}
    top = {"k": int(given["k"]), "auxk_alpha": float(given["aux"])}
    penalty = float(given["sparsity"])
    # Their names of the weights, ours, and whether theirs are transposed.
    linear = {"encoder.weight": ("W_enc", True), "encoder.bias": ("b_enc", False), "decoder.weight": ("W_dec", True)}
    match variant:
        case "relu":
            trainer = StandardTrainer(**shared, l1_penalty=penalty, sparsity_warmup_steps=None)
            names = linear | {"bias": ("b_dec", False)}
        case "topk":
            trainer = TopKTrainer(**shared, **top)
            names = linear | {"b_dec": ("b_dec", False)}
        case "batchtopk":
            trainer = BatchTopKTrainer(**shared, **top)
            names = linear | {"b_dec": ("b_dec", False)}
        case "matryoshka":
            sizes = np.diff(given["prefixes"], prepend=0)
            trainer = MatryoshkaBatchTopKTrainer(**shared, **top, group_fractions=(sizes / n_features).tolist())
            names = {name: (name, False) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        case "jumprelu":
            trainer = JumpReluTrainer(
                **shared, bandwidth=float(given["bandwidth"]), sparsity_penalty=penalty, sparsity_warmup_steps=None
            )
            names = {name: (name, False) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
        case "gated":
            trainer = GatedSAETrainer(**shared, l1_penalty=penalty, sparsity_warmup_steps=None)
            names = {
                "encoder.weight": ("W_enc", True),
                "decoder.weight": ("W_dec", True),
                "gate_bias": ("b_enc", False),
                "r_mag": ("r_mag", False),
                "mag_bias": ("b_mag", False),
                "decoder_bias": ("b_dec", False),
            }
    weights = dict(trainer.ae.named_parameters())
    for theirs, (ours, is_transposed) in names.items():
        value = torch.from_numpy(given[ours].copy())
        weights[theirs].data = value.T.contiguous() if is_transposed else value
    if variant in ("topk", "batchtopk", "matryoshka"):
        trainer.num_tokens_since_fired[dead] = trainer.dead_feature_threshold
    loss = trainer.loss(x, step=1)
    loss.backward()
    gradients = {
        ours: weights[theirs].grad.T if is_transposed else weights[theirs].grad
        for theirs, (ours, is_transposed) in names.items()
    }
    return {"loss": loss.item(), **gradients}


def of_sparsify(variant: str, given: dict[str, np.ndarray], x: torch.Tensor, dead: torch.Tensor) -> dict:
    torch.cuda.is_bf16_supported = lambda *_, **__: False  # type: ignore[assignment]  # asked when it is imported
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    config = SparseCoderConfig(
        k=int(given["k"]), num_latents=given["W_dec"].shape[0], transcode=variant == "transcoder"
    )
    coder = SparseCoder(x.shape[1], config, dtype=torch.float64)
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
    weights = dict(coder.named_parameters())
    for theirs, ours in names.items():
        value = torch.from_numpy(given[ours].copy())
        weights[theirs].data = value.T.contiguous() if ours == "W_enc" else value
    y = torch.from_numpy(given["y"]) if variant == "transcoder" else None
    output = coder(x, y, dead_mask=dead if dead.any() else None)
    loss = output.fvu + float(given["aux"]) * output.auxk_loss
    loss.backward()
    gradients = {ours: weights[theirs].grad for theirs, ours in names.items()}
    return {"loss": loss.item()} | gradients | {"W_enc": gradients["W_enc"].T}


def of_post(variant: str, given: dict[str, np.ndarray], x: torch.Tensor, dead: torch.Tensor) -> dict:
    from sae_training.sparse_autoencoder import SparseAutoencoder

    n_features, d = given["W_dec"].shape
    config = types.SimpleNamespace(
        **{"d_in": d, "d_sae": n_features, "l1_coefficient": float(given["sparsity"]), "dtype": torch.float64},
        **{"device": "cpu", "use_ghost_grads": bool(dead.any())},
    )
    sae = SparseAutoencoder(config)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]  # it rounds what it reconstructs
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    for name in names:
        getattr(sae, name).data = torch.from_numpy(given[name].copy())
    loss = sae(x, dead)[2]
    loss.backward()
    return {"loss": loss.item()} | {name: getattr(sae, name).grad for name in names}


def main() -> None:
    library, folder = sys.argv[1:]
    compute = {
        "saelens": of_saelens,
        "dictionary_learning": of_dictionary_learning,
        "sparsify": of_sparsify,
        "post": of_post,
    }[library]
    for path in sorted(Path(folder).glob("*.in.npz")):
        given, case = dict(np.load(path)), path.name.removesuffix(".in.npz")
        out = compute(case.split("-")[0], given, torch.from_numpy(given["x"]), torch.from_numpy(given["dead"]))
        np.savez(path.with_name(f"{case}.out.npz"), **{name: np.asarray(value) for name, value in out.items()})


if __name__ == "__main__":
    main()
