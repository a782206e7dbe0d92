"""The model card of a run that goes to the hub: what it is, its numbers, how it is loaded."""

from collections.abc import Mapping
from typing import Any

from .formats import Outgoing
from .interchange import read_stats
from .run_dir import Run

_RECIPE = (
    *("recipe", "variant", "error", "k", "l1", "l0_penalty", "target_l0", "decoder_norm", "dead_remedy", "normalize"),
    *("lr", "warmup", "schedule", "decay", "weight_decay", "batch_size", "rows", "precision", "seed"),
)


def model_card(run: Run, out: Outgoing, repo_id: str, folder: str, format_name: str) -> str:
    """Markdown with the metadata that the hub reads; numbers are the run's own, with the rows they are of."""
    origin, plain = out.origin, out.plain
    d_in, d_sae = plain.W_enc.shape
    kind = "transcoder" if plain.is_transcoder else "sparse autoencoder"
    lines = [
        "---",
        "library_name: " + ("saelens" if format_name == "saelens" else "thresher"),
        "tags:",
        "- sparse-autoencoder",
        "- interpretability",
        "- vision",
        "---",
        "",
        f"# {repo_id.split('/')[-1]}",
        "",
        f"A {kind} ({out.variant}) of {d_sae:,} features of {d_in:,} inputs, in `{folder}`.",
        "",
        *_table(_about(out)),
        *_numbers(run),
        *_recipe(out.training),
        "",
        "## Load it",
        "",
        *_loading(repo_id, folder, format_name),
    ]
    if origin.layer is not None:
        lines.append("Layers are 0-based.")
    return "\n".join(lines).rstrip() + "\n"


def _about(out: Outgoing) -> list[tuple[str, object]]:
    origin = out.origin
    model = " ".join(part for part in (origin.model, origin.pretrained) if part)
    return [
        ("tower", model or None),
        ("layer (0-based)", origin.layer),
        ("site", origin.site),
        ("token", origin.token),
        ("reconstructs", origin.target),
        ("weights of the tower, sha256", origin.weights_sha256),
    ]


def _numbers(run: Run) -> list[str]:
    """L0 and explained variance: of the statistics, else of the last evaluation of training."""
    summary = read_stats(run)
    if summary is None:
        held_out = [record for record in run.metrics() if record["split"] == "heldout"]
        summary = held_out[-1] if held_out else {}
    if not summary:
        return []
    l0 = summary.get("l0")
    values: list[tuple[str, object]] = [
        ("rows", f"{summary.get('n_rows', 0):,} ({summary.get('split')})"),
        ("L0, mean", _short(l0.get("mean")) if isinstance(l0, Mapping) else None),
        ("explained variance", _short(summary.get("explained_variance"))),
        ("MSE", _short(summary.get("mse"))),
        ("dead features on these rows", summary.get("n_dead")),
    ]
    return ["", "## Numbers", "", *_table(values)]


def _recipe(training: Mapping[str, Any]) -> list[str]:
    values = [(name, training.get(name)) for name in _RECIPE]
    table = _table(values)
    return ["", "## Training", "", *table] if training else []


def _table(values: list[tuple[str, object]]) -> list[str]:
    return [
        "| what | value |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in values if value is not None),
    ]


def _loading(repo_id: str, folder: str, format_name: str) -> list[str]:
    lines = [
        "```shell",
        f"thresher pull {repo_id} run --folder {folder}",
        "```",
        "",
        "```python",
        "import thresher",
        "",
        'sae = thresher.load_sae("run")',
        "features = sae.encode(activations)",
        "```",
        "",
    ]
    if format_name == "saelens":
        lines += [
            "```python",
            "from sae_lens import SAE",
            "",
            f'sae = SAE.from_pretrained("{repo_id}", "{folder}")',
            "```",
            "",
        ]
    return lines


def _short(value: object) -> str | None:
    return f"{value:.4g}" if isinstance(value, (int, float)) else None
