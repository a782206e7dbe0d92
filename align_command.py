"""The command `align RUN`, and how its result reads on a terminal."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .analysis.align_options import AlignOptions
from .command import FolderPath, echo, edge, given, options_of, to_json
from .progress import ConsoleReporter
from .results import table

if TYPE_CHECKING:
    from .analysis.alignment import AlignResult

_CHANCE = {"isotropic": "isotropic chance", "covariance": "chance with the activations' covariance"}


@click.command()
@click.argument("run", type=FolderPath())
@options_of(AlignOptions)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
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
    main = side["main"]
    what = "MLP neurons" if main["kind"] == "mlp" else "attention directions"
    title = f"{name.capitalize()} vectors and the {main['n_vectors']:,} {what} of block {main['layer']} (0-based):"
    lines = []
    for word in ("signed", "absolute"):
        features = main["features"][word]
        if features is None:
            continue
        lines.append((f"largest {word} cosine", _quantiles(features["quantiles"])))
        for kind, chance in main["chance"].items():
            lines.append((f"  {_CHANCE[kind]}", _quantiles(chance[word])))
            test = side["aligned"][f"{word}_{kind}"]
            lines.append(
                (
                    "    aligned above it",
                    f"{test['n_aligned']:,} of {test['n_tested']:,} ({_share(test['share'])}) at a false discovery "
                    f"rate of {summary['fdr']:g}; {_share(features['share_above_chance'][kind])} lie above its "
                    f"{_quantile_word(summary)}, {features['chance_level'][kind]:.3f}",
                )
            )
    for level, of_level in side["neurons_per_feature"].items():
        if level == "signed_isotropic" and of_level["n_features"]:
            lines.append(
                (
                    f"neurons above {of_level['above']:.3f}",
                    f"median {of_level['median']:.0f}, at most {of_level['max']:,}; fewer than 5 for "
                    f"{_share(of_level['share_fewer_than_5'])} of the {of_level['n_features']:,} features with any",
                )
            )
    earlier = side["earlier"]
    if earlier is not None:
        tests = earlier["aligned"]
        found = [f"{test['n_aligned']:,} above {_CHANCE[name.split('_')[1]]}" for name, test in _signed(tests).items()]
        lines.append((f"any MLP of the {earlier['n_blocks']} earlier blocks", "aligned: " + ", ".join(found)))
    return "\n".join([title, table(lines)])


def _signed(tests: dict[str, Any]) -> dict[str, Any]:
    return {name: test for name, test in tests.items() if name.startswith("signed")}


def _of_neurons(kind: str, neurons: dict[str, Any]) -> str:
    found = neurons["label_entropy"]
    what = {"mlp_act": "their activations", "projection": "projections on their output vectors"}[kind]
    difference = found["difference"]
    lines = [
        (
            "median label entropy",
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
    title = f"The {neurons['k']} largest images of the MLP neurons of block {neurons['layer']} by {what}{signs}: "
    counts = f"{found['n_features']:,} features and {found['n_neurons']:,} neurons with a label entropy"
    return "\n".join([title + counts, table(lines)])


def _quantiles(quantiles: dict[str, float | None] | None) -> str:
    if quantiles is None or quantiles["0.5"] is None:
        return "-"
    return f"median {quantiles['0.5']:.3f}, 1 % to 99 % {quantiles['0.01']:.3f} to {quantiles['0.99']:.3f}"


def _quantile_word(summary: dict[str, Any]) -> str:
    return f"{100 * summary['chance_quantile']:g}th percentile"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} nats"


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
