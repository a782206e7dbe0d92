"""Weights and batches on which our losses and gradients are compared with those of other libraries."""

import numpy as np

N, D, F, K = 64, 32, 256, 12
PREFIXES = (16, 80, F)

Given = dict[str, np.ndarray]


def problem(library: str, variant: str, has_dead: bool) -> Given:
    """Weights and batch, and what they are scored by in the peers' convention."""
    rng = np.random.default_rng(0)
    decoder = rng.standard_normal((F, D))
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    dead = np.zeros(F, bool)
    dead[3::5] = has_dead
    given = {
        "x": rng.standard_normal((N, D)),
        "dead": dead,
        "W_enc": rng.standard_normal((D, F)) * 0.3,
        # SAELens's AuxK has no relu: they agree where each row's aux_k largest dead features are above zero. In
        # dictionary_learning a feature that fires on this batch is not dead.
        "b_enc": rng.standard_normal(F) * 0.1 - 0.5 + (3.0 if library in ("saelens", "sparsify") else -3.0) * dead,
        "W_dec": decoder,
        "b_dec": rng.standard_normal(D) * 0.2,
        "k": np.array(K),
        "prefixes": np.array(PREFIXES),
        "aux": np.array(1 / 32 if has_dead else 0.0),
        "sparsity": np.array(0.2 if variant in ("relu", "jumprelu", "gated") else 0.0),
        "bandwidth": np.array(0.1),
    }
    if variant == "transcoder":
        given |= {"y": rng.standard_normal((N, D))}
    if variant == "gated":
        given |= {"r_mag": rng.standard_normal(F) * 0.2, "b_mag": rng.standard_normal(F) * 0.3}
    if variant == "jumprelu":
        given["threshold"] = np.exp(rng.standard_normal(F) * 0.3 - 1.0)
        if library in ("dictionary_learning", "overcomplete"):
            # The penalty of the first, (L0 / target - 1)^2, is computed from the activations, after the jump, where
            # inactive entries are 0: its kernel misses those just below their threshold. The second has an L1 penalty
            # only. Their reconstruction terms are compared.
            given["sparsity"] = np.array(0.0)
    change = {"overcomplete": _for_overcomplete, "saev": _for_saev, "prisma": _for_prisma}.get(library)
    if change:
        given |= change(variant, given)
    return {name: np.asarray(value) for name, value in given.items()}


def _for_overcomplete(variant: str, given: Given) -> Given:
    """It has no bias but the encoder's, and a sum over the batch for a penalty."""
    changed = {"b_dec": np.zeros(D), "sparsity": given["sparsity"] / N}
    if variant == "topk" and given["dead"].any():
        # Its AuxK takes what a row did not choose, dead or not: here the dead, the others being chosen on every row.
        alive = np.arange(F) < K
        changed |= {"dead": ~alive, "b_enc": np.where(alive, 20.0, given["b_enc"] * 0.1)}
    return changed


def _for_saev(_variant: str, given: Given) -> Given:
    """Its AuxK decodes with b_dec and has no relu; a feature that fires on this batch is not dead.

    Of the paper's loss it is where b_dec is 0 and a row's largest dead features lie above 0, below those it chooses.
    """
    dead = given["dead"]
    if not dead.any():
        return {}
    return {
        "b_dec": np.zeros(D),
        "W_enc": np.where(dead, 0.05, 1.0) * given["W_enc"],
        "b_enc": np.where(dead, given["b_enc"] + 4.0, given["b_enc"]),
    }


def _for_prisma(variant: str, given: Given) -> Given:
    """Its error is over the norm of a row less the batch's mean: here 0, a row's opposite being another.

    Its ghost gradients are scaled by the batch's mean error, the post's by each entry's: here they are all the same, of
    the entries 1 and -1 by a reconstruction that is 0. The norm of the residual is over it less the batch's mean, too.
    Those of its transcoder are taught what the output leaves of the input: they are another objective.

    Its gated SAE adds a plain sum over coordinates, of the gate's error, to that: D times the mean, as the other is
    where rows have norm 1 / D. It takes the gate's error from x - b_dec.
    """
    halves = {name: given[name][: N // 2] for name in ("x", "y") if name in given}
    changed = {name: np.concatenate([half, -half]) for name, half in halves.items()}
    if given["dead"].any():
        changed |= {"x": np.sign(changed["x"]), "b_dec": np.zeros(D)}
        changed |= {"W_enc": given["W_enc"] * 0.1, "b_enc": given["b_enc"] - 3.0}
    if variant == "transcoder":  # it has another bias, of the input
        changed |= {"b_dec": given["b_dec"]}
    if variant == "gated":
        scale = D**-1.5
        changed["x"] /= D * np.linalg.norm(changed["x"], axis=1, keepdims=True)
        changed |= {name: given[name] * scale for name in ("b_enc", "b_mag", "sparsity")}
        changed |= {"b_dec": np.zeros(D)}
    return changed
