"""Loss and gradients of batches by another library's own training code, in float64: run in that library's Python.

usage: python peer_gradients.py LIBRARY FOLDER

FOLDER holds VARIANT.in.npz, or VARIANT-dead.in.npz: `x` (n, d), of a transcoder the target `y` (n, d), `dead` (F,)
bool, numbers of the objective, and the weights by our names, W_enc (d, F), W_dec (F, d). Each gets an .out.npz of the
loss and the gradients by the same names.
"""

import sys
import types
from collections.abc import Callable
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
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]  # it rounds in its AuxK
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
    return _by_our_names(sae, given, lambda: sae(x, dead)[2])


def of_overcomplete(variant: str, given: dict[str, np.ndarray], x: torch.Tensor, dead: torch.Tensor) -> dict:
    import matplotlib as mpl

    if not hasattr(mpl.cm, "get_cmap"):  # its import needs what newer versions of matplotlib lack
        mpl.cm.get_cmap = mpl.colormaps.get_cmap
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "step"))
    from implementations import _without_imports

    _without_imports("timm", "cv2", "skimage", "torchvision")
    from overcomplete.sae import SAE, BatchTopKSAE, JumpSAE, TopKSAE, losses

    n_features, d = given["W_dec"].shape
    k, penalty = int(given["k"]), float(given["sparsity"])
    # Its norm of rows, 1 - 1e-8, is given to the weights, beside the gradient.
    shared = {"input_shape": d, "nb_concepts": n_features, "dictionary_params": {"normalization": "identity"}}
    names = {"encoder.final_block.0.weight": "W_enc", "encoder.final_block.0.bias": "b_enc"}
    names |= {"dictionary._weights": "W_dec"}
    match variant:
        case "relu":
            sae = SAE(**shared)
        case "topk":
            sae = TopKSAE(**shared, top_k=k)
        case "batchtopk":
            sae = BatchTopKSAE(**shared, top_k=k * len(x))
        case "jumprelu":
            sae = JumpSAE(**shared, kernel="rectangle", bandwidth=float(given["bandwidth"]))
            sae.thresholds.data = torch.from_numpy(given["threshold"]).log()
    weights = dict(sae.named_parameters())
    for theirs, ours in names.items():
        value = torch.from_numpy(given[ours].copy())
        weights[theirs].data = value.T.contiguous() if ours == "W_enc" else value
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]  # it rounds the number of the dead
    pre, codes, x_hat = sae.train()(x)
    scored = (x, x_hat, pre, codes, sae.get_dictionary())
    if dead.any() and variant == "topk":
        loss = losses.top_k_auxiliary_loss(*scored, penalty=float(given["aux"]))
    else:
        loss = losses.mse_l1(*scored, penalty=penalty)
    if dead.any() and variant == "jumprelu":
        loss = loss + losses.reanimation_regularizer(*scored, penalty=float(given["aux"]))
    loss.backward()
    gradients = {ours: weights[theirs].grad for theirs, ours in names.items()}
    gradients["W_enc"] = gradients["W_enc"].T
    if variant == "jumprelu":  # its parameter is the logarithm
        gradients["threshold"] = sae.thresholds.grad / sae.thresholds.data.exp()
    return {"loss": loss.item()} | gradients


def of_saev(variant: str, given: dict[str, np.ndarray], x: torch.Tensor, dead: torch.Tensor) -> dict:
    from saev.nn import modeling, objectives

    n_features, d = given["W_dec"].shape
    top = {"top_k": int(given["k"]), "aux": modeling.AuxK(k_aux=d // 2, alpha=float(given["aux"]))}
    match variant:
        case "relu":
            activation = modeling.Relu(sparsity=modeling.L1Sparsity(coeff=float(given["sparsity"])))
        case "topk":
            activation = modeling.TopK(**top)
        case "batchtopk" | "matryoshka":
            activation = modeling.BatchTopK(**top)
    sae = modeling.SparseAutoencoder(
        modeling.SparseAutoencoderConfig(d_model=d, d_sae=n_features, activation=activation)
    )
    prefixes = given["prefixes"] if variant == "matryoshka" else np.array([n_features])
    objectives.sample_prefixes = lambda *_: torch.from_numpy(prefixes)  # it draws them anew at each step
    objective = objectives.get_objective(objectives.Matryoshka(n_prefixes=len(prefixes)))
    objective.toks_since_active = dead * objective.cfg.dead_threshold_tokens
    return _by_our_names(sae, given, lambda: objective(sae, x)[0].loss)


def of_saev_release(variant: str, given: dict[str, np.ndarray], x: torch.Tensor, dead: torch.Tensor) -> dict:
    from saev import config
    from saev.nn import SparseAutoencoder

    n_features, d = given["W_dec"].shape
    settings = config.SparseAutoencoder(
        d_vit=d, exp_factor=n_features // d, sparsity_coeff=float(given["sparsity"]), ghost_grads=False
    )
    sae = SparseAutoencoder(settings)
    return _by_our_names(sae, given, lambda: sae(x)[2].loss)


def of_prisma(variant: str, given: dict[str, np.ndarray], x: torch.Tensor, dead: torch.Tensor) -> dict:
    from vit_prisma.sae.config import VisionModelSAERunnerConfig
    from vit_prisma.sae.sae import GatedSparseAutoencoder, StandardSparseAutoencoder
    from vit_prisma.sae.transcoder import Transcoder

    n_features, d = given["W_dec"].shape
    has_k = variant in ("topk", "transcoder")
    config = VisionModelSAERunnerConfig(
        **{"d_in": d, "d_out": d, "expansion_factor": n_features // d, "normalize_activations": "none"},
        **{"_device": "cpu", "_dtype": "float64", "l1_coefficient": float(given["sparsity"])},
        architecture="gated" if variant == "gated" else "standard",
        activation_fn_str="topk" if has_k else "relu",
        activation_fn_kwargs={"k": int(given["k"])} if has_k else {},
        use_ghost_grads=bool(dead.any()),
        transcoder_with_skip_connection=False,
    )
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]  # it rounds the residual
    if variant == "transcoder":
        coder = Transcoder(config)
        y = torch.from_numpy(given["y"])
        return _by_our_names(coder, given, lambda: coder(x, y)[2], b_dec="b_dec_out")
    if variant == "gated":
        gated = GatedSparseAutoencoder(config)
        vectors = {"b_enc": "b_gate", "r_mag": "r_mag", "b_mag": "b_mag"}
        return _by_our_names(gated, given, lambda: gated(x)[2], **vectors)
    sae = StandardSparseAutoencoder(config)
    return _by_our_names(sae, given, lambda: sae(x, dead if dead.any() else None)[2])


def _by_our_names(
    sae: torch.nn.Module, given: dict[str, np.ndarray], loss_of: Callable[[], torch.Tensor], **theirs: str
) -> dict:
    """Loss and gradients of a library whose matrices lie as ours do, its names being ours but for `theirs`."""
    names = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")} | theirs
    for ours, name in names.items():
        getattr(sae, name).data = torch.from_numpy(given[ours].copy())
    loss = loss_of()
    loss.backward()
    return {"loss": loss.item()} | {ours: getattr(sae, name).grad for ours, name in names.items()}


def main() -> None:
    library, folder = sys.argv[1:]
    compute = {
        "saelens": of_saelens,
        "dictionary_learning": of_dictionary_learning,
        "sparsify": of_sparsify,
        "overcomplete": of_overcomplete,
        "saev": of_saev,
        "saev_release": of_saev_release,
        "prisma": of_prisma,
        "post": of_post,
    }[library]
    for path in sorted(Path(folder).glob("*.in.npz")):
        given, case = dict(np.load(path)), path.name.removesuffix(".in.npz")
        out = compute(case.split("-")[0], given, torch.from_numpy(given["x"]), torch.from_numpy(given["dead"]))
        np.savez(path.with_name(f"{case}.out.npz"), **{name: np.asarray(value) for name, value in out.items()})


if __name__ == "__main__":
    main()
