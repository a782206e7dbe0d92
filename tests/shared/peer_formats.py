"""SAEs saved and loaded by another library's own code: run in that library's Python.

usage: python peer_formats.py LIBRARY JOBS

JOBS is a JSON list of objects. {"do": "save", "kind", "to", "x", "out"} makes an SAE of random weights of a kind and
saves it to a folder; {"do": "load", "from", "x", "out"} loads one. Either way `out` gets the activations `f` and the
reconstruction `x_hat` of the rows in `x`, as npz.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

D, F, K = 16, 48, 5


def randomise(module: torch.nn.Module) -> None:
    """Give every parameter normal numbers; thresholds stay above 0."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
            if "threshold" in name:
                parameter.abs_()


class SaeLens:
    kinds = (
        *("standard", "standard-not-centred", "standard-layer_norm", "standard-constant_norm_rescale", "topk"),
        *("topk-rescaled", "jumprelu", "gated", "batchtopk", "matryoshka", "transcoder", "jumprelu_transcoder"),
    )

    def save(self, kind: str, to: Path):
        import sae_lens as lens
        from sae_lens.saes.transcoder import (
            JumpReLUTranscoder,
            JumpReLUTranscoderConfig,
            Transcoder,
            TranscoderConfig,
        )

        size = {"d_in": D, "d_sae": F}
        norm = kind.partition("-")[2]
        of_rows = {"normalize_activations": norm} if norm in ("layer_norm", "constant_norm_rescale") else {}
        if kind in ("batchtopk", "matryoshka"):
            train = {**size, "k": K, "rescale_acts_by_decoder_norm": False}
            if kind == "batchtopk":
                sae = lens.BatchTopKTrainingSAE(lens.BatchTopKTrainingSAEConfig(**train))
            else:
                cfg = lens.MatryoshkaBatchTopKTrainingSAEConfig(**train, matryoshka_widths=[8, F])
                sae = lens.MatryoshkaBatchTopKTrainingSAE(cfg)
            randomise(sae)
            sae.topk_threshold.fill_(0.8)
            sae.save_inference_model(str(to))
            return lens.SAE.load_from_disk(to)
        made = {
            "standard": lambda: lens.StandardSAE(
                lens.StandardSAEConfig(**size, **of_rows, apply_b_dec_to_input=norm != "not-centred")
            ),
            "topk": lambda: lens.TopKSAE(
                lens.TopKSAEConfig(**size, k=K, rescale_acts_by_decoder_norm=norm == "rescaled")
            ),
            "jumprelu": lambda: lens.JumpReLUSAE(lens.JumpReLUSAEConfig(**size)),
            "gated": lambda: lens.GatedSAE(lens.GatedSAEConfig(**size)),
            "transcoder": lambda: Transcoder(TranscoderConfig(**size, d_out=7, apply_b_dec_to_input=False)),
            "jumprelu_transcoder": lambda: JumpReLUTranscoder(
                JumpReLUTranscoderConfig(**size, d_out=7, apply_b_dec_to_input=False)
            ),
        }
        sae = made[kind.partition("-")[0]]()
        randomise(sae)
        sae.save_model(to)
        return sae

    def load(self, path: Path):
        from sae_lens import SAE

        return SAE.load_from_disk(path)

    def numbers(self, sae, x):
        f = sae.encode(x)
        return f, sae.decode(f)


class Sparsify:
    kinds = ("topk", "transcoder")

    def save(self, kind: str, to: Path):
        from sparsify import SparseCoder, SparseCoderConfig

        sae = SparseCoder(D, SparseCoderConfig(num_latents=F, k=K, transcode=kind == "transcoder"))
        randomise(sae)
        sae.save_to_disk(to)
        return sae

    def load(self, path: Path):
        from sparsify import SparseCoder

        return SparseCoder.load_from_disk(path)

    def numbers(self, sae, x):
        encoded = sae.encode(x)
        f = torch.zeros(len(x), sae.num_latents).scatter_(1, encoded.top_indices, encoded.top_acts)
        # Its `decode` alone, on a CPU, takes the same kernel for every build.
        return f, sae.decode(encoded.top_acts, encoded.top_indices)


class DictionaryLearning:
    kinds = (
        *("AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"),
        *("JumpReluAutoEncoder", "GatedAutoEncoder"),
    )

    def save(self, kind: str, to: Path):
        from dictionary_learning import dictionary as d
        from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
        from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
        from dictionary_learning.trainers.top_k import AutoEncoderTopK

        made = {
            "AutoEncoderTopK": lambda: AutoEncoderTopK(D, F, K),
            "BatchTopKSAE": lambda: BatchTopKSAE(D, F, K),
            "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(D, F, K, [8, F - 8]),
        }
        sae = made[kind]() if kind in made else getattr(d, kind)(D, F)
        randomise(sae)
        if kind == "AutoEncoder":  # its loader would normalise the rows, and activations with them
            sae.decoder.weight.data /= sae.decoder.weight.norm(dim=0)
        if "BatchTopK" in kind:
            sae.threshold.fill_(0.8)
        to.mkdir()
        torch.save(sae.state_dict(), to / "ae.pt")
        trainer = {"dict_class": kind, "k": K} if "TopK" in kind else {"dict_class": kind}
        (to / "config.json").write_text(json.dumps({"trainer": trainer}))
        return self.load(to)

    def load(self, path: Path):
        from dictionary_learning.utils import load_dictionary

        return load_dictionary(str(path), "cpu")[0]

    def numbers(self, sae, x):
        f = sae.encode(x)
        return f, sae.decode(f)


class Saev:
    kinds = ("Relu", "TopK", "BatchTopK")

    def save(self, kind: str, to: Path):
        from saev.nn import modeling as m

        activation = m.Relu() if kind == "Relu" else getattr(m, kind)(top_k=K)
        sae = m.SparseAutoencoder(m.SparseAutoencoderConfig(d_model=D, d_sae=F, activation=activation))
        randomise(sae)
        if kind == "BatchTopK":
            sae.activation.threshold.fill_(0.8)
        m.dump(to / "sae.pt", sae)
        return sae.eval()

    def load(self, path: Path):
        from saev.nn import modeling as m

        return m.load(path / "sae.pt").eval()

    def numbers(self, sae, x):
        f = sae.encode(x).f_x
        return f, sae.decode(f)[:, -1]


class Prisma:
    kinds = ("relu", "topk", "gated", "relu-constant_norm_rescale", "relu-none", "relu-in-one-file")

    def save(self, kind: str, to: Path):
        from vit_prisma.sae.config import VisionModelSAERunnerConfig
        from vit_prisma.sae.sae import GatedSparseAutoencoder, StandardSparseAutoencoder

        activation, _, norm = kind.partition("-")
        fields = {
            "d_in": D,
            "expansion_factor": F // D,
            "_device": "cpu",
            "architecture": "gated" if activation == "gated" else "standard",
            "activation_fn_str": "topk" if activation == "topk" else "relu",
            "activation_fn_kwargs": {"k": K} if activation == "topk" else {},
        }
        if norm in ("none", "constant_norm_rescale"):
            fields["normalize_activations"] = norm
        cfg = VisionModelSAERunnerConfig(**fields)
        sae = (GatedSparseAutoencoder if activation == "gated" else StandardSparseAutoencoder)(cfg)
        randomise(sae)
        to.mkdir()
        if norm == "in-one-file":
            sae.save_model(str(to / "n_images_9.pt"))
            return sae
        torch.save(sae.state_dict(), to / "weights.pt")
        (to / "config.json").write_text(json.dumps(fields))
        return sae

    def load(self, path: Path):
        from vit_prisma.sae.sae import SparseAutoencoder

        return SparseAutoencoder.load_from_pretrained(str(path / "weights.pt"))

    def numbers(self, sae, x):
        f = sae.encode(x)[1]
        return f, sae.decode(f)


class Post:
    kinds = ("relu",)

    def save(self, kind: str, to: Path):
        import wandb.util

        wandb.util.generate_id = lambda: "id"  # which newer wandb does not have
        from sae_training.config import ViTSAERunnerConfig
        from sae_training.sparse_autoencoder import SparseAutoencoder

        sae = SparseAutoencoder(ViTSAERunnerConfig(d_in=D, expansion_factor=F // D, block_layer=-2))
        randomise(sae)
        sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
        sae.save_model(str(to / "final_sparse_autoencoder_openai/clip-vit-large-patch14_-2_resid_48.pt"))
        return sae

    def load(self, path: Path):
        from sae_training.sparse_autoencoder import SparseAutoencoder

        plain = torch.load
        torch.load = lambda *a, **k: plain(*a, weights_only=False, **k)  # the default of the torch that it was made for
        return SparseAutoencoder.load_from_pretrained(str(path / "final_sparse_autoencoder.pt"))

    def numbers(self, sae, x):
        x_hat, f = sae.eval()(x)[:2]  # in training it wants to be told of dead features
        return f, x_hat


LIBRARIES = {
    "saelens": SaeLens,
    "sparsify": Sparsify,
    "dictionary_learning": DictionaryLearning,
    "saev": Saev,
    "prisma": Prisma,
    "post": Post,
}

if __name__ == "__main__":
    library = LIBRARIES[sys.argv[1]]()
    for job in json.loads(Path(sys.argv[2]).read_text()):
        torch.manual_seed(0)
        sae = library.load(Path(job["from"])) if job["do"] == "load" else library.save(job["kind"], Path(job["to"]))
        with torch.no_grad():
            f, x_hat = library.numbers(sae, torch.from_numpy(np.load(job["x"])))
        np.savez(job["out"], f=f.numpy(), x_hat=x_hat.numpy())
