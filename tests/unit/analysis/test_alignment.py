"""`align` on a small tower of open_clip with random weights, and SAEs whose vectors are known."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from listener import Listener
from PIL import Image
from scipy import stats as scipy_stats
from thresher.analysis.align_options import AlignOptions
from thresher.analysis.alignment import align, decoder_blocks, encoder_blocks
from thresher.analysis.encode import encode
from thresher.analysis.entropy import label_entropy
from thresher.analysis.options import EncodeOptions, StatsOptions
from thresher.analysis.stats import stats
from thresher.analysis.stored_alignment import open_alignment
from thresher.analysis.stored_statistics import open_statistics
from thresher.cli import main
from thresher.harvest.options import HarvestOptions
from thresher.harvest.rewrite import load_recorded_clip
from thresher.harvest.run import harvest
from thresher.store.errors import StoreError
from thresher.store.format import Site
from thresher.store.loading import plan_loading
from thresher.store.reader import open_store
from thresher.train.configuration import describe_store
from thresher.train.models import ReluSae
from thresher.train.options import TrainOptions
from thresher.train.run_dir import create_run

D, M, LAYER = 32, 128, 1
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 32,
        "layers": 3,
        "width": D,
        "patch_size": 16,
        "head_width": 16,
        "ls_init_value": 0.5,
    },
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}
CLASSES = ("n01440764", "n01443537", "zebra")
QUICK = {"device": "cpu", "figures": False, "null_directions": 400}
HERE = Site(LAYER)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with the stream and the neurons of one block of a tower with layer scale, and one of the stream alone."""
    root = tmp_path_factory.mktemp("alignment")
    (root / "model.json").write_text(json.dumps({"model_cfg": MODEL}))
    draw = np.random.default_rng(0)
    for c, name in enumerate(CLASSES):
        (root / "images" / name).mkdir(parents=True)
        for i in range(30):
            pixels = draw.integers(0, 200, (32, 32, 3), dtype=np.uint8)
            pixels[..., c] //= 2
            Image.fromarray(pixels).save(root / "images" / name / f"{i}.png")

    def harvested(name, *, sites=("resid_post",), **options):
        chosen = HarvestOptions(
            model=str(root / "model.json"),
            pretrained="none",
            **{"layer": (LAYER,), "site": sites, "batch_size": 16, "device": "cpu", "workers": 0}
            | {"thumbnails": "off", "dtype": "float32"}
            | options,
        )
        harvest(chosen, str(root / "images"), str(root / name))
        return root / name

    both = harvested("both", sites=("resid_post", "mlp_act"))
    alone = harvested("alone", sites=("resid_post", "attn_out", "resid_pre"))
    state = load_recorded_clip(open_store(both).provenance).model.visual.state_dict()
    return SimpleNamespace(root=root, both=both, alone=alone, harvested=harvested, state=state)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def neurons(state, layer=LAYER):
    """Unit output vectors (m, d) of a block's MLP, straight from the weights, float64."""
    block = f"transformer.resblocks.{layer}."
    columns = state[block + "mlp.c_proj.weight"].double().numpy().T
    return unit(columns * state[block + "ls_2.gamma"].double().numpy())


@pytest.fixture
def make_run(made, tmp_path):
    def make(encoder, *, store=None, site=HERE, name="run", with_stats=True, b_enc=None, **scaling):
        store = open_store(made.both if store is None else store)
        encoder = torch.as_tensor(np.asarray(encoder), dtype=torch.float32)
        n, d = encoder.shape
        decoder = torch.nn.functional.normalize(encoder, dim=1)
        bias = torch.zeros(n) if b_enc is None else torch.as_tensor(b_enc, dtype=torch.float32)
        sae = ReluSae(encoder, bias, decoder, torch.zeros(d), **scaling)
        config = {
            "options": TrainOptions().to_json(),
            "site": site.path,
            "d_in": d,
            "d_sae": n,
            "store": describe_store(store, tmp_path / name),
            "loading": plan_loading([store.activations(site)], 64).to_json(),
        }
        create_run(tmp_path / name, config, overwrite=False)
        sae.save(tmp_path / name / "sae.safetensors")
        if with_stats:
            encode(tmp_path / name, EncodeOptions(device="cpu"))
            stats(tmp_path / name, StatsOptions(k=5, min_labelled=3, figures=False))
        return tmp_path / name

    return make


def test_cosines_are_those_of_float64_numpy_with_the_weights_of_the_state_dict(made, make_run):
    encoder = np.random.default_rng(1).standard_normal((40, D))
    run = make_run(encoder)
    align(run, AlignOptions(**QUICK, chance_quantile=0.9))
    found = open_alignment(run)
    cosine = unit(encoder) @ neurons(made.state).T  # (40, M)
    np.testing.assert_allclose(found.read("encoder/max_cosine"), cosine.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(found.read("encoder/max_abs_cosine"), np.abs(cosine).max(axis=1), atol=1e-6)
    np.testing.assert_array_equal(found.read("encoder/max_id"), cosine.argmax(axis=1))
    np.testing.assert_array_equal(found.read("encoder/max_abs_id"), np.abs(cosine).argmax(axis=1))
    order = np.argsort(-np.abs(cosine), axis=1)[:, :32]
    np.testing.assert_allclose(found.read("encoder/top_cosine"), np.take_along_axis(cosine, order, 1), atol=1e-6)
    ids, values = found.nearest(7)
    np.testing.assert_allclose(values, cosine[7, ids], atol=1e-6)
    of_neuron = found.read("encoder/of_vector/feature")  # (M, 32)
    np.testing.assert_array_equal(of_neuron, np.argsort(-np.abs(cosine.T), axis=1)[:, :32])
    np.testing.assert_allclose(
        found.read("encoder/of_vector/cosine"), np.take_along_axis(cosine.T, of_neuron.astype(int), 1), atol=1e-6
    )
    levels = found.summary["sides"]["encoder"]["neurons_per_feature"]
    assert set(levels) == {f"{word}_{kind}" for word in ("signed", "absolute") for kind in ("isotropic", "covariance")}
    for name, level in levels.items():
        above = (np.abs(cosine) if name.startswith("absolute") else cosine) > level["above"]
        np.testing.assert_array_equal(found.read(f"encoder/n_above/{name}"), above.sum(axis=1))
    others = dict(enumerate(found.group["encoder/others"].attrs["names"]))
    assert list(others.values()) == ["mlp 0", "attention 0", "attention 1"]
    earlier = unit(encoder) @ neurons(made.state, 0).T
    np.testing.assert_allclose(found.read("encoder/others/max_cosine")[0], earlier.max(axis=1), atol=1e-6)
    np.testing.assert_array_equal(found.read("encoder/others/max_id")[0], earlier.argmax(axis=1))
    np.testing.assert_allclose(found.read("encoder/earlier/max_cosine"), earlier.max(axis=1), atol=1e-6)
    assert (found.read("encoder/earlier/max_layer") == 0).all()
    assert np.isnan(found.read("encoder/others/max_cosine")[1:]).all()  # attention has no sign
    assert np.isfinite(found.read("encoder/others/max_abs_cosine")).all()


def test_features_that_are_neurons_are_found_and_the_others_are_not(made, make_run):
    planted = np.array([3, 40, 77, 78, 100])
    rng = np.random.default_rng(2)
    encoder = np.concatenate(
        (neurons(made.state)[planted] * [[2], [1], [-1], [0.1], [5]], rng.standard_normal((60, D)))
    )
    scale = np.geomspace(0.2, 3, D)
    run = make_run(encoder * scale, input_scale=torch.from_numpy(scale).float(), input_mean=torch.ones(D))
    align(run, AlignOptions(**(QUICK | {"null_directions": 20_000})))
    found = open_alignment(run)
    cosine, neuron = found.read("encoder/max_abs_cosine")[:5], found.read("encoder/max_abs_id")[:5]
    np.testing.assert_allclose(cosine, 1, atol=1e-6)  # the scaling of the SAE's input is folded in
    np.testing.assert_array_equal(neuron, planted)
    np.testing.assert_allclose(found.read("encoder/max_cosine")[[0, 1, 3, 4]], 1, atol=1e-6)
    assert found.read("encoder/max_cosine")[2] < 0.9
    alive = found.read("is_counted")
    p = found.read("encoder/p/absolute_isotropic")
    np.testing.assert_allclose(p[:5][alive[:5]], 1 / 20_001, rtol=1e-6)
    q = found.read("encoder/q/absolute_isotropic")
    assert (q[:5][alive[:5]] <= 0.05).all()
    assert int((q[5:] <= 0.05).sum()) <= 2
    expected = scipy_stats.false_discovery_control(p[np.isfinite(p)].astype(np.float64))
    np.testing.assert_allclose(q[np.isfinite(p)], expected, rtol=1e-5)
    test = found.summary["sides"]["encoder"]["aligned"]["absolute_isotropic"]
    assert test["n_tested"] == alive.sum()
    assert test["n_aligned"] == (q <= 0.05).sum()


def test_random_features_have_uniform_p_values(make_run):
    encoder = np.random.default_rng(3).standard_normal((1200, D))
    run = make_run(encoder, with_stats=False)
    align(run, AlignOptions(**(QUICK | {"null_directions": 12_000})))
    found = open_alignment(run)
    for name in ("p/signed_isotropic", "p/absolute_isotropic", "earlier/p/signed_isotropic"):
        assert scipy_stats.kstest(found.read(f"encoder/{name}"), "uniform").pvalue > 0.01
    assert found.summary["sides"]["encoder"]["aligned"]["signed_isotropic"]["n_aligned"] == 0


def test_encoder_vectors_are_taken_to_the_space_of_the_stored_rows():
    rng = np.random.default_rng(4)
    weights = [torch.from_numpy(rng.standard_normal(shape)).float() for shape in ((9, 6), (9,), (9, 6), (6,))]
    scale = torch.from_numpy(rng.uniform(0.5, 2, 6)).float()
    for options in ({"input_scale": scale}, {"layer_norm": True}, {"constant_norm": True}):
        sae = ReluSae(*weights, **options)
        sae.b_enc += 100  # so that every feature is above 0 and moves with its input
        x = torch.from_numpy(rng.standard_normal((1, 6))).float()
        moves = torch.autograd.functional.jacobian(lambda x, sae=sae: sae.encode(x)[0], x)[:, 0].numpy()  # (9, 6)
        if "input_scale" not in options:  # what a row is divided by moves too: only across the row is it the direction
            row = x.numpy()[0] - (x.numpy().mean() if "layer_norm" in options else 0)
            across = np.eye(6) - np.outer(row, row) / (row @ row)
            moves, expected = moves @ across, np.concatenate(encoder_blocks(sae)) @ across
        else:
            expected = np.concatenate(encoder_blocks(sae))
        np.testing.assert_allclose(unit(moves), unit(expected), atol=1e-4)
    decoded = ReluSae(*weights, input_scale=scale)
    steps = decoded.decode(torch.eye(9)) - decoded.decode(torch.zeros(1, 9))
    np.testing.assert_allclose(unit(steps.numpy()), np.concatenate(decoder_blocks(decoded)), atol=1e-5)


def largest_rows(values, labels, k=5):
    """Label entropy of the k largest positive values of each column, by the definition, float64."""
    entropies = []
    for column in values.T:
        rows = [r for r in np.argsort(-column, kind="stable")[:k] if column[r] > 0]
        weights = {}
        for r in rows:
            weights[labels[r]] = weights.get(labels[r], 0) + column[r]
        shares = np.array(list(weights.values())) / sum(weights.values()) if weights else np.ones(1)
        entropies.append(-(shares * np.log(shares)).sum() if len(rows) >= 3 else np.nan)
    return np.array(entropies)


def stored_rows(path, site):
    store = open_store(path)
    return store.activations(site).read(0, store.n_rows).astype(np.float64), store.labels(0, store.n_rows)


@pytest.mark.parametrize("signs", ["positive", "both"])
def test_neurons_of_the_runs_own_store_have_the_label_entropy_of_their_largest_images(made, make_run, signs):
    run = make_run(np.random.default_rng(5).standard_normal((30, D)))
    align(run, AlignOptions(**QUICK, signs=signs, project=True))
    found = open_alignment(run)
    activations, labels = stored_rows(made.both, Site(LAYER, "mlp_act"))
    stream, _ = stored_rows(made.both, HERE)
    projected = (stream - stream.mean(axis=0)) @ neurons(made.state).T
    features = open_statistics(run)
    for kind, values in (("mlp_act", activations), ("projection", projected)):
        units = np.concatenate((values, -values), axis=1) if signs == "both" else values
        expected = largest_rows(units, labels)
        entropy = found.read(f"neurons/{kind}/label_entropy")
        np.testing.assert_allclose(entropy, expected, atol=2e-4)
        np.testing.assert_array_equal(found.read(f"neurons/{kind}/n_active"), (units > 0).sum(axis=0))
        first = np.where((units > 0).any(axis=0), np.argmax(units, axis=0), -1)
        np.testing.assert_array_equal(found.read(f"neurons/{kind}/top_row")[:, 0], first)
        summary = found.summary["neurons"][kind]
        of_features = features.statistics.label_entropy[features.statistics.is_alive & ~features.is_uld]
        of_features, expected = (each[np.isfinite(each)] for each in (of_features, entropy))
        compared = summary["label_entropy"]
        assert compared["median_features"] == pytest.approx(np.median(of_features), abs=1e-6)
        assert compared["difference"]["value"] == pytest.approx(np.median(expected) - np.median(of_features), abs=1e-6)
        assert compared["difference"]["low"] <= compared["difference"]["value"] <= compared["difference"]["high"]
        assert compared["share_neurons_selective"] == pytest.approx((expected < 1).mean())
        u = scipy_stats.mannwhitneyu(of_features, expected, method="asymptotic")
        assert compared["ranks"]["p"] == pytest.approx(u.pvalue)
        again, _ = label_entropy(
            found.read(f"neurons/{kind}/top_value"), found.read(f"neurons/{kind}/top_label"), min_labelled=3
        )
        np.testing.assert_array_equal(again, entropy)


def test_neurons_of_another_store_count_the_same_in_many_tasks(made, make_run):
    run = make_run(np.random.default_rng(6).standard_normal((30, D)), store=made.alone)
    align(run, AlignOptions(**QUICK))
    assert open_alignment(run).summary["neurons"] == {}
    align(run, AlignOptions(**QUICK, neurons=str(made.both), overwrite=True, task_bytes=1000))
    many = open_alignment(run).read("neurons/mlp_act/top_value")
    activations, _ = stored_rows(made.both, Site(LAYER, "mlp_act"))
    np.testing.assert_array_equal(many, np.maximum(-np.sort(-activations, axis=0)[:5].T, 0).astype(np.float32))


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_neurons_count_the_same_on_worker_processes(made, make_run):
    run = make_run(np.random.default_rng(6).standard_normal((30, D)))
    documents = []
    for workers in (None, 2):
        align(run, AlignOptions(**QUICK, workers=workers, project=True, overwrite=True, task_bytes=4000))
        found = open_alignment(run)
        arrays = [
            found.read(f"neurons/{kind}/{name}")
            for kind in ("mlp_act", "projection")
            for name in ("top_row", "top_value")
        ]
        documents.append((found.summary, [array.tolist() for array in arrays]))
    assert documents[0] == documents[1]


def test_a_store_of_other_neurons_is_refused(made, make_run):
    run = make_run(np.random.default_rng(7).standard_normal((30, D)), store=made.alone)
    turned = made.harvested("turned", sites=("mlp_act",), seed=5)
    other_layer = made.harvested("other layer", sites=("mlp_act",), layer=(0,))
    fewer = made.harvested("fewer", sites=("mlp_act",), limit=60)
    for store, problem in (
        (made.alone, "does not hold layer 1"),
        (other_layer, "does not hold layer 1"),
        (turned, "weights_sha256|another order"),
        (fewer, "other images"),
    ):
        with pytest.raises(StoreError, match=problem):
            align(run, AlignOptions(**QUICK, neurons=str(store)))
    assert not (run / "alignment.json").exists()


def test_features_without_a_vector_and_dead_ones_are_left_out(made, make_run):
    encoder = np.random.default_rng(8).standard_normal((12, D))
    encoder[4] = 0
    bias = np.zeros(12)
    bias[9] = -1e4
    run = make_run(encoder, b_enc=bias)
    align(run, AlignOptions(**QUICK, decoder=True))
    found = open_alignment(run)
    counted = found.read("is_counted")
    assert not counted[9]
    assert found.summary["n_counted"] == counted.sum()
    for side in ("encoder", "decoder"):
        assert np.isnan(found.read(f"{side}/max_cosine")[4])
        assert found.read(f"{side}/max_id")[4] == -1
        assert np.isnan(found.read(f"{side}/p/signed_isotropic")[4])
        assert np.isfinite(found.read(f"{side}/max_cosine")[9])
        assert np.isnan(found.read(f"{side}/p/signed_isotropic")[9])
        assert found.summary["sides"][side]["n_without_direction"] == 1
    ids, values = found.nearest(4)
    assert len(ids) == len(values) == 0


def test_one_feature_is_enough_and_figures_are_drawn_of_it(made, make_run):
    run = make_run(neurons(made.state)[:1] * 3)
    result = align(run, AlignOptions(device="cpu", null_directions=300, project=True))
    names = [path.name for path in result.figures]
    assert names == [
        "alignment_cosines.png",
        "alignment_neurons.png",
        "alignment_blocks.png",
        "alignment_entropy.png",
    ]
    for path in result.figures:
        with Image.open(path) as figure:
            assert figure.size[0] == 1200
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF-")


@pytest.mark.parametrize(("site", "main"), [("attn_out", "attention 1"), ("resid_pre", "mlp 0"), ("mlp_act", "mlp 1")])
def test_other_sites_are_held_against_what_writes_there(made, make_run, site, main):
    place = Site(LAYER, site)
    d = M if site == "mlp_act" else D
    run = make_run(
        np.random.default_rng(9).standard_normal((20, d)), store=made.both if d == M else made.alone, site=place
    )
    result = align(run, AlignOptions(device="cpu", null_directions=200))
    found = open_alignment(run)
    assert found.summary["sides"]["encoder"]["main"]["name"] == main
    if site == "mlp_act":  # a neuron is a coordinate
        encoder = unit(np.random.default_rng(9).standard_normal((20, d)))
        np.testing.assert_allclose(found.read("encoder/max_abs_cosine"), np.abs(encoder).max(axis=1), atol=1e-6)
        with pytest.raises(ValueError, match="are the neurons themselves"):
            align(run, AlignOptions(**QUICK, project=True, overwrite=True))
    if site == "attn_out":
        assert np.isnan(found.read("encoder/max_cosine")).all()
        with pytest.raises(ValueError, match="held against attention"):
            align(run, AlignOptions(**QUICK, project=True, overwrite=True))
    assert result.figures


def test_a_transcoders_vectors_are_held_against_what_meets_its_input_and_its_output(made, make_run, tmp_path):
    rng = np.random.default_rng(13)
    run = make_run(rng.standard_normal((20, D)), store=made.alone, site=Site(LAYER, "resid_pre"), with_stats=False)
    config = json.loads((run / "config.json").read_text()) | {"target_site": Site(LAYER, "attn_out").path}
    (run / "config.json").write_text(json.dumps(config))
    decoder, scale = rng.standard_normal((20, D)), rng.uniform(0.5, 2, D)
    tensors = [torch.from_numpy(each).float() for each in (rng.standard_normal((20, D)), np.zeros(20), decoder, scale)]
    encoder, b_enc, W_dec, output_scale = tensors
    sae = ReluSae(encoder, b_enc, W_dec, torch.zeros(D), output_scale=output_scale, centres_input=False)
    sae.save(run / "sae.safetensors")
    align(run, AlignOptions(**QUICK, decoder=True))
    found = open_alignment(run)
    assert found.summary["sides"]["encoder"]["main"]["name"] == "mlp 0"
    assert found.summary["sides"]["decoder"]["main"]["name"] == "attention 1"
    cosine = unit(encoder.double().numpy()) @ neurons(made.state, 0).T
    np.testing.assert_allclose(found.read("encoder/max_cosine"), cosine.max(axis=1), atol=1e-6)
    at = dict(zip(found.group["decoder/others"].attrs["names"], range(2), strict=True))["mlp 0"]
    cosine = unit(decoder * scale) @ neurons(made.state, 0).T
    np.testing.assert_allclose(found.read("decoder/others/max_cosine")[at], cosine.max(axis=1), atol=1e-6)


def test_neurons_of_patches_are_counted_over_the_patches_rows(made, make_run):
    store = made.harvested("patches", sites=("resid_post", "mlp_act"), token="patch", limit=40)
    place = Site(LAYER, "resid_post", "patch")
    run = make_run(np.random.default_rng(14).standard_normal((20, D)), store=store, site=place)
    align(run, AlignOptions(**QUICK, project=True, other_blocks=False))
    found = open_alignment(run)
    activations, _ = stored_rows(store, Site(LAYER, "mlp_act", "patch"))
    assert len(activations) == 160
    np.testing.assert_array_equal(found.read("neurons/mlp_act/n_active"), (activations > 0).sum(axis=0))
    stream, _ = stored_rows(store, place)
    projected = (stream - stream.mean(axis=0)) @ neurons(made.state).T
    np.testing.assert_array_equal(found.read("neurons/projection/top_row")[:, 0], projected.argmax(axis=0))
    assert "others" not in found.group["encoder"]


def test_a_store_or_run_that_does_not_fit_is_refused_in_one_line(made, make_run, tmp_path):
    run = make_run(np.random.default_rng(10).standard_normal((8, D)), with_stats=False)
    with pytest.raises(StoreError, match="no statistics to hold neurons against: run `thresher stats`"):
        align(run, AlignOptions(**QUICK, project=True))
    with pytest.raises(StoreError, match="other fingerprint"):
        align(run, AlignOptions(**QUICK, store=str(made.alone)))
    align(run, AlignOptions(**QUICK))
    with pytest.raises(StoreError, match="--overwrite"):
        align(run, AlignOptions(**QUICK))
    with pytest.raises(StoreError, match="run `thresher align` first"):
        open_alignment(tmp_path)
    (run / "sae.safetensors").unlink()
    with pytest.raises(StoreError, match="not a finished run"):
        align(run, AlignOptions(**QUICK, overwrite=True))


@pytest.mark.parametrize(
    "options",
    [
        {"signs": "negative"},
        {"fdr": 0.0},
        {"chance_quantile": 1.0},
        {"null_directions": 0},
        {"seed": -1},
        {"workers": 2, "scheduler": "tcp://127.0.0.1:1"},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AlignOptions(**options)


def test_the_command_prints_tables_or_the_document(make_run):
    run = make_run(np.random.default_rng(11).standard_normal((30, D)))
    arguments = ["align", str(run), "--project", "--null-directions", "200", "--no-figures", "--quiet"]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0, shown.output
    assert "Encoder vectors and the 128 MLP neurons of block 1 (0-based):" in shown.output
    assert "isotropic chance" in shown.output
    assert max(len(line) for line in shown.output.splitlines() if "/" not in line) <= 110
    document = CliRunner().invoke(main, [*arguments, "--json", "--overwrite"])
    assert json.loads(document.stdout) == json.loads((run / "alignment.json").read_text())


def test_a_run_without_neurons_images_says_how_to_get_them(made, make_run):
    run = make_run(np.random.default_rng(12).standard_normal((10, D)), store=made.alone)
    heard = Listener()
    align(run, AlignOptions(**QUICK), heard)
    assert any("name it with --neurons, or give --project" in said for said in heard.said)


def test_the_help_of_align_imports_nothing_heavy():
    code = (
        "import sys; from thresher.align_command import align; import click\n"
        "align.main(['--help'], standalone_mode=False)\n"
        "print([m for m in ('torch', 'zarr', 'dask', 'matplotlib', 'open_clip') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"
