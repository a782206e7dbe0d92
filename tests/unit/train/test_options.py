"""Training options: the recipe to the number, explicit options over it, each bad value named."""

import re
import subprocess
import sys
from dataclasses import fields

import pytest
from thresher.train.options import TrainOptions
from thresher.train.recipes import RECIPES, resolve_options


def test_the_recipe_sets_what_the_post_says():
    o = resolve_options({"recipe": "post-2024"})
    assert (o.variant, o.expansion, o.l1, o.lr, o.warmup, o.decay) == ("relu", 64, 8e-5, 4e-4, 500, 0)
    assert (o.batch_size, o.rows, o.steps) == (1024, 2_621_440, 2560)
    assert (o.resolved_dead_remedy, o.resolved_error, o.dead_after_rows) == ("ghost", "normalized", 65_536)
    assert (o.b_dec_init, o.encoder_init, o.normalize, o.precision) == (
        "geometric-median",
        "independent",
        "none",
        "fp32",
    )
    assert o.d_sae(1024) == 65_536


def test_given_options_win_over_the_recipe_even_where_they_repeat_a_default():
    o = resolve_options({"recipe": "post-2024", "b_dec_init": "mean", "expansion": TrainOptions().expansion})
    assert o.b_dec_init == "mean"
    assert o.expansion == TrainOptions().expansion
    assert o.l1 == 8e-5


def test_the_recipe_can_be_run_without_ghost_gradients_and_as_another_variant():
    assert resolve_options({"recipe": "post-2024", "dead_remedy": "none"}).resolved_dead_remedy == "none"
    o = resolve_options({"recipe": "post-2024", "variant": "topk"})
    assert (o.variant, o.resolved_dead_remedy, o.batch_size, o.l1) == ("topk", "auxk", 1024, TrainOptions().l1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"l1": 1e-3},
            "--l1 0.001 is for variant relu or gated and this run is topk: leave it out, or give --variant relu",
        ),
        ({"variant": "relu", "k": 8}, "--k 8 is for variant topk or batchtopk or matryoshka and this run is relu"),
        (
            {"recipe": "post-2024", "aux": 0.0},
            "--aux 0.0 goes with --dead-remedy auxk or preact, and this run has ghost",
        ),
        ({"recipe": "post-2024", "aux_k": 3}, "--aux-k 3 goes with --dead-remedy auxk, and this run has ghost"),
        ({"images_rows": 50}, "--images-rows 50 goes with --images, and none are given"),
        ({"caption": "a {}"}, "--caption a {} goes with --images, and none are given"),
    ],
)
def test_an_option_that_the_variant_would_ignore_is_refused(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_options(given)


def test_every_recipe_names_only_options_and_makes_valid_ones():
    for name, values in RECIPES.items():
        assert set(values) <= {f.name for f in fields(TrainOptions)}
        resolve_options({"recipe": name})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recipe": "post-2023"}, "--recipe post-2023 must be one of post-2024"),
        ({"variant": "gate"}, "--variant gate must be one of topk, relu"),
        ({"rows": 100, "batch_size": 200}, "--rows 100 is less than one batch of 200"),
        ({"batch_size": 0}, "--batch-size 0 must be at least 1"),
        ({"images": ""}, "--images '' is empty: name it, or leave it out"),
        ({"wandb": " "}, "--wandb ' ' is empty: name it, or leave it out"),
        ({"lr": 0.0}, "--lr 0.0 must be above 0"),
        ({"lr": float("nan")}, "--lr nan must be above 0"),
        ({"l1": -1e-3}, "--l1 -0.001 must be 0 or more"),
        ({"l1": float("inf")}, "--l1 inf must be 0 or more"),
        ({"decay": 1.5}, "--decay 1.5 is a share of the run"),
        ({"expansion": -2.0}, "--expansion -2.0 must be above 0"),
        ({"layer": -2}, "--layer -2 is 0-based"),
        ({"dead_remedy": "preact"}, "--dead-remedy preact is for variant jumprelu"),
        (
            {"normalize": "layer-norm", "to_layer": 3},
            "--normalize layer-norm is undone by the reconstruction of the same",
        ),
        ({"precision": "fp16"}, "--precision fp16 must be one of"),
        ({"aux_k": 0}, "--aux-k 0 must be at least 1"),
    ],
)
def test_a_bad_option_is_named_with_its_value(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_options(given)


def test_more_active_features_than_there_are_is_refused_when_the_width_is_known():
    with pytest.raises(ValueError, match=r"--k 32 exceeds the 24 features"):
        TrainOptions(k=32, expansion=3).d_sae(8)
    with pytest.raises(ValueError, match=r"--target-l0 25.0 exceeds the 24 features"):
        TrainOptions(variant="relu", target_l0=25.0, expansion=3).d_sae(8)


def test_auxk_uses_the_power_of_two_nearest_half_the_width():
    assert [TrainOptions().resolved_aux_k(d) for d in (192, 768, 1024, 1)] == [128, 512, 512, 1]  # log2 96 is 6.58
    assert TrainOptions(aux_k=7).resolved_aux_k(1024) == 7


def test_options_come_back_from_json_and_unknown_ones_are_named():
    o = resolve_options({"recipe": "post-2024", "layer": 22})
    assert TrainOptions.from_json(o.to_json()) == o
    with pytest.raises(ValueError, match="'later'"):
        TrainOptions.from_json({**o.to_json(), "later": 1})
    with pytest.raises(ValueError, match="no training option 'precision'"):
        TrainOptions.from_json({name: value for name, value in o.to_json().items() if name != "precision"})


def test_every_option_has_help_and_reading_them_imports_nothing_heavy():
    assert all(f.metadata["help"] for f in fields(TrainOptions))
    script = (
        "import sys, thresher.train.options, thresher.train.recipes; "
        "print([m for m in ('torch', 'zarr', 'dask', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "coefficient", "sparsity"),
    [
        ({"variant": "relu"}, 7e-4, {"l1": 7e-4}),
        ({"variant": "gated"}, 2e-2, {"l1": 2e-2}),
        ({"variant": "jumprelu"}, 2e-3, {"l0_penalty": 2e-3}),
        ({"variant": "gated", "l1": 0.0}, 0.0, {"l1": 0.0}),
        ({"variant": "jumprelu", "l0_penalty": 0.5}, 0.5, {"l0_penalty": 0.5}),
        ({"variant": "jumprelu", "target_l0": 12.0}, 2e-3, {"target_l0": 12.0}),
        ({"recipe": "post-2024"}, 8e-5, {"l1": 8e-5}),
        ({"recipe": "post-2024", "variant": "gated"}, 2e-2, {"l1": 2e-2}),
        ({"variant": "matryoshka", "k": 9}, 0.0, {"k": 9}),
    ],
)
def test_each_variant_with_a_penalty_has_a_coefficient_of_its_own(given, coefficient, sparsity):
    options = resolve_options(given)
    assert (options.coefficient, options.sparsity) == (coefficient, sparsity)


def test_the_help_names_the_coefficients_that_are_taken():
    helps = {spec.name: spec.metadata["help"] for spec in fields(TrainOptions)}
    for variant, name in (("relu", "l1"), ("gated", "l1"), ("jumprelu", "l0_penalty")):
        assert f"{resolve_options({'variant': variant}).coefficient:g}" in helps[name]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("pictures", "HERE/pictures"),
        ("../pictures", "UP/pictures"),
        ("tars/part-{000..003}.tar", "HERE/tars/part-{000..003}.tar"),
        ("/data/pictures", "/data/pictures"),
        ("quickstart", "quickstart"),
        ("s3://bucket/pictures", "s3://bucket/pictures"),
        (None, None),
    ],
)
def test_images_are_kept_so_that_a_run_goes_on_from_another_folder(given, kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = resolve_options({"images": given})
    monkeypatch.chdir("/")
    again = TrainOptions.from_json(options.to_json())
    expected = kept and kept.replace("HERE", str(tmp_path)).replace("UP", str(tmp_path.parent))
    assert (options.images, again.images) == (expected, expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": [3, 4]}, "--k [3, 4] is of type list, and one int is needed"),
        ({"k": "3"}, "--k '3' is of type str, and one int is needed"),
        ({"k": 3.0}, "--k 3.0 is of type float, and one int is needed"),
        ({"lr": None}, "--lr None is of type NoneType, and one float is needed"),
        ({"target_l0": "x"}, "--target-l0 'x' is of type str, and one float or None is needed"),
    ],
)
def test_a_value_of_another_type_is_told_as_one(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainOptions(**given)
    assert TrainOptions(lr=1, expansion=2).lr == 1
