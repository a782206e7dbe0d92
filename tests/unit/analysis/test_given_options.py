"""Options kept with a result, and the command line that gives them again."""

import json
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from thresher.analysis.align_options import AlignOptions
from thresher.analysis.attributes_options import AttributesOptions
from thresher.analysis.evaluate_options import EvaluateOptions
from thresher.analysis.given_options import NO_BEARING, kept_options, words_of
from thresher.analysis.options import EncodeOptions, StatsOptions
from thresher.analysis.report_sections import _train_words
from thresher.command import given, options_of
from thresher.train.options import FREE_ON_RESUME, TrainOptions
from thresher.train.recipes import RECIPES, resolve_options


def read_back(options: type, words: str) -> dict:
    """What a command with these options takes from the words."""
    found = {}

    @click.command()
    @options_of(options)
    @click.pass_context
    def command(context, **_):
        found.update(given(context, options))

    done = CliRunner().invoke(command, shlex.split(words))
    assert done.exit_code == 0, done.output
    return found


@pytest.mark.parametrize(
    "options",
    [
        StatsOptions(),
        StatsOptions(k=7, min_labelled=3, split="heldout", samples=0, embeddings="my images; rm.npy", seed=4),
        StatsOptions(from_store=True, rows=100, store="s3://bucket/a b", figures=False, sheet_features=(3, 17)),
        EncodeOptions(rows=10, split="train", precision="bf16", store="-there"),
        EvaluateOptions(caption='It\'s {} "here"', templates="openai", repeat_captions=True, explain=True, n_images=9),
        AlignOptions(neurons="mlp.zarr", project=True, decoder=True, other_blocks=False, fdr=0.1, signs="both"),
        AttributesOptions(untrained=Path("un trained/run"), group="a,b", separator=",", max_share=0.25, seed=1),
    ],
    ids=lambda options: type(options).__name__,
)
def test_the_words_of_kept_options_give_those_options_again(options):
    kept = json.loads(json.dumps(kept_options(options)))
    assert type(options)(**read_back(type(options), words_of(type(options), kept))) == options


def test_the_defaults_take_no_words_and_what_no_number_depends_on_is_not_kept():
    for options in (StatsOptions, EncodeOptions, EvaluateOptions, AlignOptions, AttributesOptions):
        assert words_of(options, kept_options(options())) == ""
        assert not NO_BEARING & set(kept_options(options()))
    elsewhere = StatsOptions(workers=2, task_bytes=1, overwrite=True)
    assert words_of(StatsOptions, kept_options(elsewhere)) == ""
    assert words_of(StatsOptions, {}) == ""  # of a version that kept none


@pytest.mark.parametrize(
    "explicit",
    [
        {},
        *({"recipe": name} for name in RECIPES),
        {"recipe": "post-2024", "variant": "topk", "k": 8, "seed": 3},
        {"variant": "jumprelu", "target_l0": 12.0, "bandwidth": 0.1, "layer": 2},
        {"variant": "matryoshka", "groups": 3, "expansion": 2.5, "dead_remedy": "resample", "resample_every": 10},
        {"variant": "relu", "l1": 1e-9, "decoder_norm": True, "device": "cpu", "log_every": 7},
    ],
)
def test_the_words_of_a_training_give_its_options_again(explicit):
    options = resolve_options(explicit)
    again = resolve_options(read_back(TrainOptions, _train_words(options)))
    for name, value in options.to_json().items():
        if name not in FREE_ON_RESUME | {"recipe"}:
            assert getattr(again, name) == value, name
