"""The command `align RUN`, and how its result reads on a terminal."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .analysis.align_options import AlignOptions
from .analysis.description import table_lines
from .command import FolderPath, echo, edge, given, options_of, to_json
from .progress import ConsoleReporter
from .results import table

if TYPE_CHECKING:
    from .analysis.alignment import AlignResult

_CHANCE = {"isotropic": "isotropic chance", "covariance": "chance of their covariance"}


@click.command()
@click.argument("run", type=FolderPath())
@options_of(AlignOptions)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress on stderr; warnings still.")
@click.pass_context
@edge
def align(context: click.Context, run: Path, as_json: bool, quiet: bool, **_: Any) -> None:
    """Hold RUN's features against its tower's MLP neurons.

    Cosines of encoder vectors with the output vectors of the block's MLP, of every earlier one's and of attention,
    beside those of random directions; and the label entropy of the neurons' largest images beside the features'.

    \b
    Example: thresher align run-1 --project
    Example: thresher harvest imagenet/train mlp.zarr --layer 22 --site mlp_act
             thresher align run-1 --neurons mlp.zarr
    """  # noqa: D301 (\b is the character that click asks for)
    from .analysis.alignment import align as run_alignment

    result = run_alignment(run, AlignOptions(**given(context, AlignOptions)), ConsoleReporter(quiet=quiet))
    echo(to_json(result.summary) if as_json else of_alignment(result))


def of_alignment(result: "AlignResult") -> str:
    """What an alignment found, as short tables, and where its figures are."""
    summary = result.summary
    blocks = [f"{result.run_path}: {summary['n_counted']:,} of {summary['d_sae']:,} features, {summary['counted']}."]
    for name, side in summary["sides"].items():
        blocks.append(_of_side(name, side, summary))
    for kind, neurons in summary["neurons"].items():
        blocks.append(_of_neurons(kind, neurons))
    if result.figures:
        blocks.append("Figures: " + ", ".join(str(path) for path in result.figures))
    return "\n".join(blocks)


def _of_side(name: str, side: dict[str, Any], summary: dict[str, Any]) -> str:
    main, earlier = side["main"], side["earlier"]
    what = "MLP neurons" if main["kind"] == "mlp" else "attention directions"
    lines = [f"{name.capitalize()} vectors and the {main['n_vectors']:,} {what} of block {main['layer']} (0-based):"]
    rows = _rows("cosine", "signed", main, side["aligned"]) + _rows("|cosine|", "absolute", main, side["aligned"])
    if earlier is not None:
        rows += _rows(f"cosine, {earlier['n_blocks']} earlier MLPs", "signed", earlier, earlier["aligned"])
    header = ["largest of a vector", "median", "1 %", "99 %", "above its 99 %", "aligned"]
    header[4] = f"above its {100 * summary['chance_quantile']:g} %"
    lines += ["  " + line.rstrip() for line in table_lines(header, rows)]
    lines.append(f"  (aligned: p-values adjusted to a false discovery rate of {summary['fdr']:g})")
    for level, of_level in side["neurons_per_feature"].items():
        if level == "signed_isotropic" and of_level["n_features"]:
            lines.append(
                f"  {of_level['n_features']:,} features have neurons above {of_level['above']:.3f}: median "
                f"{of_level['median']:g}, at most {of_level['max']:,}, fewer than 5 in "
                f"{_share(of_level['share_fewer_than_5'])}"
            )
    return "\n".join(lines)


def _rows(title: str, word: str, of: dict[str, Any], tests: dict[str, Any]) -> list[list[str]]:
    """Features and each kind of chance, as rows of a table; none where a set has no signed cosines."""
    features = of["features"][word]
    if features is None:
        return []
    rows = [[f"{title}: features", *_quantiles(features["quantiles"]), "", ""]]
    for kind, chance in of["chance"].items():
        above, n_aligned = features["share_above_chance"][kind], tests[f"{word}_{kind}"]["n_aligned"]
        rows.append([f"  {_CHANCE[kind]}", *_quantiles(chance[word]), _share(above), f"{n_aligned:,}"])
    return rows


def _of_neurons(kind: str, neurons: dict[str, Any]) -> str:
    found = neurons["label_entropy"]
    what = {"mlp_act": "their activations", "projection": "projections on their output vectors"}[kind]
    difference = found["difference"]
    lines = [
        (
            "median",
            f"features {_nats(found['median_features'])}, neurons {_nats(found['median_neurons'])}",
        ),
        (
            "neurons less features",
            f"{_nats(difference['value'])}, 95 % interval {_nats(difference['low'])} to {_nats(difference['high'])}",
        ),
        (
            "below 1 nat",
            f"features {_share(found['share_features_selective'])}, neurons {_share(found['share_neurons_selective'])}",
        ),
        (
            "a feature's is the lower",
            f"in {_share(found['ranks']['p_first_smaller'])} of pairs (rank-sum p = {_p(found['ranks']['p'])})",
        ),
    ]
    signs = ", both signs" if neurons["signs"] == "both" else ""
    title = f"Label entropy of {found['n_features']:,} features, and of {found['n_neurons']:,} MLP neurons of block"
    by = f" {neurons['layer']} by {what}{signs}:"
    return "\n".join([title + by, table(lines)])


def _quantiles(quantiles: dict[str, float | None]) -> list[str]:
    return ["-" if quantiles[q] is None else f"{quantiles[q]:.3f}" for q in ("0.5", "0.01", "0.99")]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} nats"


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
