"""The commands: parse, call one function of a room, print, translate errors. No arithmetic."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import results
from ._version import __version__
from .align_command import align
from .analysis.options import EncodeOptions, StatsOptions
from .attributes_command import attributes
from .classes_command import classes
from .command import FolderPath, GroupedCommand, StorePlace, echo, edge, given, given_values, options_of, to_json
from .compare_command import compare
from .embed_command import embed
from .evaluate_command import evaluate
from .explore_command import explore
from .harvest.options import HarvestOptions
from .name_command import name
from .progress import ConsoleReporter
from .report_command import report
from .train.interchange_options import ExportOptions, ImportOptions, PullOptions, PushOptions
from .train.options import TrainOptions
from .visualise_command import visualise

if TYPE_CHECKING:
    from .store.verify import VerifyReport

# Before torch is loaded: OpenMP threads that spin while they wait take the cores of decoding processes and other users.
# Measured on two busy cores: a training step 161 ms spinning, 43 ms not. No result depends on it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_PATH = FolderPath()
_PATH_OR_URL = StorePlace()
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout.")
_quiet = click.option("--quiet", is_flag=True, help="No progress on stderr; warnings still.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="thresher")
def main() -> None:
    """Find the visual concepts inside CLIP vision transformers with sparse autoencoders.

    \b
    thresher quickstart              the whole chain on built-in pictures
    thresher harvest IMAGES STORE    images to activations
    thresher train STORE RUN         activations to sparse autoencoders
    thresher sweep RUN               the several, beside each other
    thresher encode RUN              its feature activations on the store
    thresher stats RUN               every number and figure
    thresher embed RUN               the tower's embeddings of its images
    thresher classes RUN [LABEL]     what its features know of each class
    thresher evaluate RUN IMAGES     what it costs the tower on held-out images
    thresher align RUN               its features beside the tower's neurons
    thresher name RUN                its features by phrases, each scored
    thresher attributes RUN CSV      which known attributes its features tell
    thresher visualise RUN           pictures that show what its features seek
    thresher report RUN              all of it on one page; compare RUN RUN
    thresher explore RUN...          browse its features in the browser
    thresher import SRC RUN          another library's SAE; export, push, pull

    Layers are 0-based everywhere: layer 22 is the 23rd block.
    """  # noqa: D301 (\b is the character that click asks for)


@main.command()
@click.argument("folder", metavar="[DIR]", type=_PATH, default=Path("thresher-quickstart"))
@click.option("--overwrite", is_flag=True, help="Begin anew where DIR holds an earlier quickstart.")
@click.option("--serve", is_flag=True, help="Then open the explorer on it.")
@_json
@_quiet
@edge
def quickstart(folder: Path, overwrite: bool, serve: bool, as_json: bool, quiet: bool) -> None:
    """Run the whole chain on built-in pictures and model, offline.

    Harvests 20,001 emoji drawings, trains an SAE, encodes, computes; then does the same on an untrained tower and
    compares what the features know with random ones. Everything is written below DIR.

    \b
    Example: thresher quickstart
    """  # noqa: D301 (\b is the character that click asks for)
    from .analysis.quickstart import QuickstartOptions, format_result
    from .analysis.quickstart import quickstart as run

    result = run(QuickstartOptions(folder=folder, overwrite=overwrite), ConsoleReporter(quiet=quiet))
    echo(to_json(result) if as_json else format_result(result))
    if serve:
        from .analysis.explorer.serve import explore as open_explorer

        open_explorer([result.run_path], reporter=ConsoleReporter(quiet=quiet))


@main.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGES...", type=_PATH_OR_URL)
@click.argument("store", type=_PATH_OR_URL)
@options_of(HarvestOptions)
@_json
@_quiet
@click.pass_context
@edge
def harvest(context: click.Context, images: tuple[str, ...], store: str, as_json: bool, quiet: bool, **_: Any) -> None:
    """Write the activations of a CLIP tower on IMAGES to STORE.

    IMAGES is a folder of class folders (ImageNet's layout), a flat folder, WebDataset tars, a CSV of path,label, or
    the word `quickstart`. STORE is a folder, or a URL such as s3://bucket/key. The same command again resumes a
    harvest that was stopped.

    \b
    Example: thresher harvest imagenet/train imagenet-l22.zarr --layer 22
    Example: thresher harvest quickstart emoji.zarr --model quickstart --layer 4
    Example: thresher harvest imagenet/train s3://bucket/imagenet-l22.zarr
    Example: torchrun --nproc-per-node 8 -m thresher harvest imagenet l22.zarr
    """  # noqa: D301 (\b is the character that click asks for)
    from .harvest.run import harvest as run

    options = HarvestOptions(**given(context, HarvestOptions))
    result = run(options, images if len(images) > 1 else images[0], store, ConsoleReporter(quiet=quiet))
    if result.rank == 0:  # of the processes of a torchrun, one speaks
        echo(to_json(result) if as_json else results.of_harvest(result))


@main.command(cls=GroupedCommand)
@click.argument("store", type=_PATH_OR_URL)
@click.argument("run", type=_PATH)
@options_of(TrainOptions, several=True)
@click.option(
    "--resume", is_flag=True, help="Go on from the last checkpoint of RUN, with the options it was begun with."
)
@_json
@_quiet
@click.pass_context
@edge
def train(context: click.Context, store: str, run: Path, resume: bool, as_json: bool, quiet: bool, **_: Any) -> None:
    """Train a sparse autoencoder on the activations in STORE. Everything about it is written to RUN.

    An option with several values, with commas or by repetition, makes a sweep: all combinations are trained together
    from one stream of batches, and RUN holds a run for each. An option that only some variants have varies those.

    \b
    Example: thresher train imagenet-l22.zarr run-1 --recipe post-2024
    Example: thresher train imagenet-l22.zarr run-2 --k 32 --expansion 16
    Example: thresher train imagenet-l22.zarr sweep --k 16,32,64 --expansion 8,16
    Example: thresher train imagenet-l22.zarr run-1 --resume
    Example: torchrun --nproc-per-node 8 -m thresher train imagenet-l22.zarr run-3
    """  # noqa: D301 (\b is the character that click asks for)
    from .analysis.spliced_training import splicer
    from .train.loop import train as run_training
    from .train.ranks import joined_ranks
    from .train.recipes import resolve_options, resumed_options
    from .train.run_dir import SWEEP

    values, reporter = given_values(context, TrainOptions), ConsoleReporter(quiet=quiet)
    is_sweep = any(len(each) > 1 for each in values.values()) or (resume and (run / SWEEP).exists())
    with joined_ranks() as ranks:
        if is_sweep:
            from .train.sweep import train_sweep

            sweep = train_sweep(values, store, run, reporter, resume=resume, ranks=ranks, splicer=splicer)
        else:
            explicit = {name: value for name, (value,) in values.items()}
            options = resumed_options(run, explicit) if resume else resolve_options(explicit)
            result = run_training(options, store, run, reporter, resume=resume, ranks=ranks, splicer=splicer)
    if ranks.rank != 0:  # of the processes of a torchrun, one speaks
        return
    if not is_sweep:
        echo(to_json(result) if as_json else results.of_training(result))
        return
    from .analysis.sweep_results import gather

    echo(to_json(sweep.to_json()) if as_json else results.of_sweep_training(sweep, gather([run])))
    if sweep.failures:
        raise click.ClickException(results.of_failures(sweep))


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=_PATH)
@click.option(
    "--out",
    type=_PATH,
    metavar="DIR",
    help="Folder for sweep.tsv and figures/pareto.png; by default RUN, where that is one sweep.",
)
@click.option("--overwrite", is_flag=True, help="Replace what an earlier one wrote to --out.")
@_json
@edge
def sweep(runs: tuple[Path, ...], out: Path | None, overwrite: bool, as_json: bool) -> None:
    """Compare the SAEs of a sweep, or of several RUNs and sweeps.

    Prints what varies between them and their held-out numbers, and draws L0 against explained variance with the
    Pareto front.

    \b
    Example: thresher sweep sweep-1
    Example: thresher sweep sweep-1 sweep-2 run-1 --out comparison
    """  # noqa: D301 (\b is the character that click asks for)
    from .analysis.sweep_results import compare

    comparison = compare(runs, out, overwrite=overwrite)
    echo(to_json(comparison.to_json()) if as_json else results.of_comparison(comparison))


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=_PATH)
@options_of(EncodeOptions)
@_json
@_quiet
@click.pass_context
@edge
def encode(context: click.Context, runs: tuple[Path, ...], as_json: bool, quiet: bool, **_: Any) -> None:
    """Write the feature activations of RUN's store. They go to RUN/features.zarr, sparse, by row and by feature.

    Several RUNs, or a sweep's, of one store share one reading of its rows. The same command again goes on where one
    that was stopped or killed was.

    \b
    Example: thresher encode run-1
    Example: thresher encode run-1 --store imagenet-val-l22.zarr --overwrite
    Example: thresher encode sweep-1 run-2
    """  # noqa: D301 (\b is the character that click asks for)
    from .analysis.encode import encode_several, runs_of

    options, paths = EncodeOptions(**given(context, EncodeOptions)), runs_of(runs)
    encoded = encode_several(paths, options, ConsoleReporter(quiet=quiet))
    echo(to_json(encoded if len(paths) > 1 else encoded.results[0]) if as_json else results.of_encodings(encoded))
    if encoded.failures:
        raise click.ClickException(results.of_encoding_failures(encoded))


@main.command()
@click.argument("run", metavar="RUN|MATRIX", type=_PATH)
@click.argument("out", required=False, type=_PATH)
@options_of(StatsOptions)
@_json
@_quiet
@click.pass_context
@edge
def stats(context: click.Context, run: Path, out: Path | None, as_json: bool, quiet: bool, **_: Any) -> None:
    """Compute the statistics and figures of RUN's features.

    Dask computes them from what `thresher encode RUN` wrote. In place of a run, a dense (rows, features) zarr array
    MATRIX may be given; its statistics go to OUT.

    \b
    Example: thresher stats run-1
    Example: thresher stats run-1 --workers 4 --feature 17 --feature 42
    Example: thresher stats matrix.zarr out --labels labels.npy
    """  # noqa: D301 (\b is the character that click asks for)
    from .analysis.stats import dense_statistics
    from .analysis.stats import stats as run_statistics

    options, reporter = StatsOptions(**given(context, StatsOptions)), ConsoleReporter(quiet=quiet)
    if out is None and (run / "zarr.json").exists():
        raise ValueError(f"{run} is a zarr array or group, not a run: for a matrix, name the folder OUT to write to.")
    result = run_statistics(run, options, reporter) if out is None else dense_statistics(run, out, options, reporter)
    echo(to_json(result.summary) if as_json else results.of_statistics(result))


@main.command()
@click.argument("path", metavar="STORE|RUN", type=_PATH_OR_URL)
@_json
@edge
def info(path: str, as_json: bool) -> None:
    """Describe a store, a run or a sweep.

    \b
    Example: thresher info imagenet-l22.zarr
    """  # noqa: D301 (\b is the character that click asks for)
    from .analysis.describe import describe

    description = describe(path)
    if as_json:
        echo(to_json(description.record))
        return
    echo(description.title)
    echo(results.table(description.lines))


@main.command()
@click.argument("store", type=_PATH_OR_URL)
@click.option(
    "--repair",
    is_flag=True,
    help="Make what is damaged again: from what is left where that tells, else from the recorded images and tower.",
)
@click.option(
    "--images",
    multiple=True,
    metavar="IMAGES",
    help="For --repair: where the images are now; by default where they were harvested from. Repeatable.",
)
@click.option("--device", default="auto", show_default=True, help="For --repair: where the tower runs, as for harvest.")
@_json
@_quiet
@edge
def verify(store: str, repair: bool, images: tuple[str, ...], device: str, as_json: bool, quiet: bool) -> None:
    """Check every byte of STORE against what was committed. Exit status 1 if any differs.

    \b
    Example: thresher verify imagenet-l22.zarr
    Example: thresher verify imagenet-l22.zarr --repair --images imagenet/train
    """  # noqa: D301 (\b is the character that click asks for)
    reporter = ConsoleReporter(quiet=quiet)
    if images and not repair:
        raise click.UsageError("--images goes with --repair.")
    report: VerifyReport
    if repair:
        from .harvest.repair import repair as run_repair

        report = run_repair(store, images, reporter, device=device)
    else:
        from .store.verify import verify_store

        report = verify_store(store, reporter)
    lines = to_json(report) if as_json else results.of_verification(store, report)
    if lines:
        echo(lines)
    if report.problems:
        raise click.ClickException(results.of_damage(store, report, was_repaired=repair))


@main.command()
@click.argument("stores", nargs=-1, required=True, metavar="STORE...", type=_PATH_OR_URL)
@click.argument("out", type=_PATH_OR_URL)
@_json
@edge
def merge(stores: tuple[str, ...], out: str, as_json: bool) -> None:
    """Join finished STOREs into one, OUT, without copying a row.

    OUT holds references; the stores stay where they are and are read through it as one: rows end to end, every
    training batch drawn from all in proportion to their sizes. They must be of the same tower, preprocessing,
    precision, dtype, layers, sites and tokens. To add new images to a store: `thresher harvest IMAGES STORE --append`.

    \b
    Example: thresher merge laion-0.zarr laion-1.zarr laion-2.zarr laion.zarr
    """  # noqa: D301 (\b is the character that click asks for)
    from .store.parts import merge_stores
    from .store.reader import open_store

    n_parts = merge_stores(list(stores), out)
    store = open_store(out)
    if as_json:
        echo(to_json({"store": out, "n_parts": n_parts, "n_rows": store.n_rows, "n_images": store.n_images}))
        return
    echo(f"{out}: {n_parts} parts, {store.n_rows:,} rows of {store.n_images:,} images.")


@main.command("import")
@click.argument("src", type=_PATH)
@click.argument("run", type=_PATH)
@options_of(ImportOptions)
@_json
@click.pass_context
@edge
def import_(context: click.Context, src: Path, run: Path, as_json: bool, **_: Any) -> None:
    """Make RUN of an SAE that another library wrote to SRC.

    The format is recognised by its files: SAELens, sparsify, dictionary_learning, saev, ViT-Prisma, the post's .pt,
    thresher's own. Nothing in them is run.

    \b
    Example: thresher import saelens-folder run-3 --store imagenet-l22.zarr
    Example: thresher import final_sparse_autoencoder.pt run-4 --format post
    """  # noqa: D301 (\b is the character that click asks for)
    from .train.interchange import import_sae

    result = import_sae(src, run, ImportOptions(**given(context, ImportOptions)))
    echo(to_json(result) if as_json else results.of_import(result))


@main.command()
@click.argument("run", type=_PATH)
@click.argument("out", type=_PATH)
@options_of(ExportOptions)
@_json
@click.pass_context
@edge
def export(context: click.Context, run: Path, out: Path, as_json: bool, **_: Any) -> None:
    """Write RUN's SAE to OUT as another library's files. Its scaling is folded into the weights.

    \b
    Example: thresher export run-1 run-1-saelens
    Example: thresher export run-1 sae.pt --format saev
    """  # noqa: D301 (\b is the character that click asks for)
    from .train.interchange import export_sae

    result = export_sae(run, out, ExportOptions(**given(context, ExportOptions)))
    echo(to_json(result) if as_json else results.of_export(result))


@main.command()
@click.argument("run", type=_PATH)
@click.argument("repo_id")
@options_of(PushOptions)
@_json
@click.pass_context
@edge
def push(context: click.Context, run: Path, repo_id: str, as_json: bool, **_: Any) -> None:
    """Write RUN's SAE, with a model card, to REPO_ID on the Hub.

    REPO_ID is a model repository of the Hugging Face hub.

    \b
    Example: thresher push run-1 me/clip-l22-sae
    Example: thresher push run-1 me/clip-l22-sae --format thresher --private
    """  # noqa: D301 (\b is the character that click asks for)
    from .train.hub import push as run_push

    result = run_push(run, repo_id, PushOptions(**given(context, PushOptions)))
    echo(to_json(result) if as_json else results.of_push(result))


@main.command()
@click.argument("repo_id")
@click.argument("run", type=_PATH)
@options_of(PullOptions)
@_json
@click.pass_context
@edge
def pull(context: click.Context, repo_id: str, run: Path, as_json: bool, **_: Any) -> None:
    """Make RUN of an SAE in REPO_ID, a model repository of the Hub.

    \b
    Example: thresher pull me/clip-l22-sae run-5 --store imagenet-l22.zarr
    Example: thresher pull me/many-saes run-6 --folder layer_22 --revision v1
    """  # noqa: D301 (\b is the character that click asks for)
    from .train.hub import pull as run_pull

    result = run_pull(repo_id, run, PullOptions(**given(context, PullOptions)))
    echo(to_json(result) if as_json else results.of_import(result))


@main.command()
@_json
@edge
def doctor(as_json: bool) -> None:
    """Say what this machine has, what is slow on it or impossible."""
    from .analysis.doctor import examine

    findings = examine()
    if as_json:
        echo(to_json(findings))
        return
    echo(results.table([(f"{finding.level:8}{finding.what}", finding.detail) for finding in findings]))


main.add_command(align)

main.add_command(attributes)
main.add_command(classes)
main.add_command(compare)
main.add_command(report)
main.add_command(embed)
main.add_command(explore)
main.add_command(evaluate)
main.add_command(name)
main.add_command(visualise)


if __name__ == "__main__":
    main()
