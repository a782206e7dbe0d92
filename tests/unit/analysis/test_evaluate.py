"""`evaluate`, against whole passes through the model with hooks of one's own, in float64."""

import json
import math
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner
from listener import Listener
from PIL import Image
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp, rel_entr
from thresher.analysis.class_damage import class_damage, paired_interval
from thresher.analysis.contrastive import caption_batches, image_losses, info_nce, repeated_batches
from thresher.analysis.evaluate import evaluate, read_evaluation
from thresher.analysis.evaluate_options import TEMPLATES, EvaluateOptions
from thresher.analysis.evaluate_text import format_evaluation
from thresher.analysis.evaluation_numbers import caption_floor, contrastive_numbers
from thresher.analysis.loss_parts import best_scale, loss_parts
from thresher.analysis.train_sae import train_sae
from thresher.analysis.zero_shot import zero_shot
from thresher.cli import main
from thresher.harvest import captions as captions_
from thresher.harvest.options import HarvestOptions
from thresher.harvest.run import harvest
from thresher.harvest.vision import load_clip, load_tower
from thresher.harvest.weights import EMBEDDED
from thresher.store.errors import StoreError
from thresher.store.reader import open_store
from thresher.train.run_dir import open_run

CLASSES = ("apple", "fire_truck", "red_ball", "zebra")
LAYER = 3


def pictures(folder, n, *, seed=0, classes=CLASSES):
    draw = np.random.default_rng(seed)
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = draw.integers(0, 120, (64, 64, 3), dtype=np.uint8)
            pixels[..., c % 3] += 90
            pixels[: 16 * c] //= 2
            Image.fromarray(pixels).save(folder / name / f"{folder.name} {i}.png")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of pictures to train on, another of 60, and one run each of an SAE of cls, one of patches and a
    transcoder."""
    root = tmp_path_factory.mktemp("evaluate")
    pictures(root / "trained", 40)
    pictures(root / "other", 15, seed=1)
    small = {"k": 4, "expansion": 2, "batch_size": 64, "rows": 640, "warmup": 2, "device": "cpu"}
    for name, more in (
        ("cls", {"layer": (LAYER,)}),
        ("patch", {"layer": (LAYER,), "site": ("mlp_out",), "token": "patch"}),
        ("both", {"layer": (LAYER,), "site": ("resid_pre", "mlp_out")}),
    ):
        options = HarvestOptions(model=EMBEDDED, batch_size=32, device="cpu", workers=0, thumbnails="off", **more)
        harvest(options, str(root / "trained"), str(root / f"{name}.zarr"))
    train_sae(root / "cls.zarr", root / "cls", **small)
    train_sae(root / "patch.zarr", root / "patch", **small)
    train_sae(root / "both.zarr", root / "transcoder", site="resid_pre", to_site="mlp_out", **small)
    return root


@pytest.fixture(scope="module")
def model():
    """The embedded model with its own tokenizer and preprocessing, as open_clip has them."""
    clip = load_clip(EMBEDDED)
    folder = str(clip.source.folder)
    tokenize = open_clip.get_tokenizer("local-dir:" + folder, bpe_path=folder + "/bpe_4096.txt.gz")
    return SimpleNamespace(clip=clip.model, tokenize=tokenize, preprocess=load_tower(EMBEDDED).preprocess)


def read_pictures(model, folder):
    """Pixels of every picture and its class, in the order of the folder's names."""
    paths = sorted(folder.glob("*/*.png"), key=lambda path: str(path).encode())
    labels = np.array([CLASSES.index(path.parent.name) for path in paths])
    return torch.stack([model.preprocess(Image.open(path).convert("RGB")) for path in paths]), labels


def unit(rows):
    rows = rows.detach().double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def embedded(model, images, read, put, change, tokens):
    """Unit embeddings where what the module `put` gives is changed by what the module `read` gave."""
    seen = []

    def see(_module, _arguments, output):
        seen[:] = [output[:, tokens].double()]

    def replace(_module, _arguments, output):
        new = output.clone()
        new[:, tokens] = change(seen[0], output[:, tokens].double()).float()
        return new

    handles = [read.register_forward_hook(see), put.register_forward_hook(replace)]
    with torch.no_grad():
        rows = unit(model.clip.encode_image(images))
    for handle in handles:
        handle.remove()
    return rows


@pytest.mark.parametrize("name", ["cls", "patch", "transcoder"])
def test_every_number_is_that_of_hooks_by_hand(root, model, name):
    found = evaluate(root / name, root / "other", EvaluateOptions(device="cpu", overwrite=True)).document
    images, own = read_pictures(model, root / "other")
    run = open_run(root / name)
    sae = run.load_sae()
    blocks = model.clip.visual.transformer.resblocks
    put = blocks[LAYER] if name == "cls" else blocks[LAYER].mlp
    read = blocks[LAYER - 1] if name == "transcoder" else put
    tokens = slice(1, None) if name == "patch" else slice(0, 1)
    store = open_store(run.store_path)
    rows = store.rows_of(np.arange(store.n_train))
    stored = store.activations(run.target_site or run.site).read(0, store.n_rows)[rows].astype(np.float64)
    if name == "patch":
        of = store.tokens(0, store.n_rows)[rows]
        mean = torch.from_numpy(np.stack([stored[of == t].mean(0) for t in np.unique(of)]))
    else:
        mean = torch.from_numpy(stored.mean(0))

    def spliced(x, y):
        with torch.no_grad():
            f = sae.encode(x.float().flatten(0, 1))
            return sae.decode(f, x.float().flatten(0, 1)).view(y.shape).double()

    ways = {
        "original": lambda x, y: y,
        "sae": spliced,
        "zero": lambda x, y: torch.zeros_like(y),
        "mean": lambda x, y: mean.expand(y.shape),
    }
    names = [c.replace("_", " ") for c in CLASSES]
    with torch.no_grad():
        texts = unit(model.clip.encode_text(model.tokenize([f"A photo of a {c}." for c in names])))
        scale = model.clip.logit_scale.exp().item()
    batches = caption_batches(own, 1000, 0)
    assert batches.shape == (15, 4)
    assert (found["contrastive"]["batch_size"], found["contrastive"]["n_batches"]) == (4, 15)
    assert found["contrastive"]["ln_batch_size"] == math.log(4)
    rows_of = {way: embedded(model, images, read, put, change, tokens) for way, change in ways.items()}
    before = log_softmax(scale * rows_of["original"] @ texts.T, axis=1)
    loss = {}
    for way, got in rows_of.items():
        logits = [scale * got[b] @ texts[own[b]].T for b in batches]
        each = [-(np.diag(log_softmax(s, 1)).mean() + np.diag(log_softmax(s, 0)).mean()) / 2 for s in logits]
        numbers, seen = found["contrastive"]["ways"][way], found["zero_shot"][way]
        loss[way] = np.mean(each)
        assert numbers["loss"] == pytest.approx(loss[way], abs=2e-5), way
        assert numbers["loss_standard_error"] == pytest.approx(np.std(each, ddof=1) / math.sqrt(15), abs=2e-5)
        assert numbers["difference"] == pytest.approx(loss[way] - loss["original"], abs=2e-5)
        low, high = numbers["loss_interval_images"]
        assert low <= numbers["loss"] <= high
        assert numbers["loss_interval_batches"] is None  # of fifteen
        nearest = (got @ texts.T).argsort(axis=1)[:, ::-1]
        if way in ("original", "sae"):
            assert seen["top1"] == pytest.approx((nearest[:, 0] == own).mean())
            assert seen["agreement"] == (nearest[:, 0] == before.argmax(1)).mean()
        assert seen["top5"] == 1  # of four classes
        after = log_softmax(scale * got @ texts.T, axis=1)
        kl = rel_entr(np.exp(before), np.exp(after)).sum(1).mean()
        assert seen["mean_kl"] == pytest.approx(kl, abs=2e-5)
    recovered = (loss["zero"] - loss["sae"]) / (loss["zero"] - loss["original"])
    assert found["contrastive"]["loss_recovered"] == pytest.approx(recovered, rel=1e-3)
    for record in found["classes"]:
        of = own == names.index(record["class"])
        right = {way: (rows_of[way] @ texts.T).argmax(1)[of] == own[of] for way in ("original", "sae")}
        assert record["n"] == 15
        assert record["top1_original"] == pytest.approx(right["original"].mean())
        assert record["top1_sae"] == pytest.approx(right["sae"].mean())


def test_templates_are_averaged_and_normed(root, model):
    assert captions_.TEMPLATES == TEMPLATES
    names = ["fire truck", "zebra"]
    for which, templates in (
        ("simple", open_clip.SIMPLE_IMAGENET_TEMPLATES),
        ("openai", open_clip.OPENAI_IMAGENET_TEMPLATES),
    ):
        with torch.no_grad():
            each = np.stack([unit(model.clip.encode_text(model.tokenize([t(n) for n in names]))) for t in templates])
        expected = each.mean(0) / np.linalg.norm(each.mean(0), axis=1, keepdims=True)
        got = captions_.embed_templates(load_clip(EMBEDDED), names, which).numpy()
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    one, two = (
        evaluate(root / "cls", root / "other", EvaluateOptions(device="cpu", overwrite=True, templates=which)).document
        for which in ("none", "simple")
    )
    assert two["contrastive"] == one["contrastive"]
    assert two["zero_shot"]["original"]["mean_kl"] == 0
    assert two["zero_shot"] != one["zero_shot"]


def test_an_explanation_compares_protocols_images_and_errors(root):
    heard = Listener()
    found = evaluate(root / "cls", root / "trained", EvaluateOptions(device="cpu", overwrite=True, explain=True), heard)
    records = found.document["explanation"]
    store = open_store(root / "cls.zarr")
    assert [(r["images"], r["repeats_captions"]) for r in records] == [
        ("held out", False),
        ("held out", True),
        ("trained on", False),
        ("trained on", True),
    ]
    assert [r["n_images"] for r in records] == [store.n_held_out] * 2 + [store.n_train] * 2
    for r in records:
        assert r["ways"]["with_error"]["difference"] == pytest.approx(0, abs=1e-4)  # float32's rounding in the tower
        assert abs(r["ways"]["random_error"]["difference"]) > 1e-3
        assert sum(part["original"] for part in r["parts"].values()) == pytest.approx(r["ways"]["original"]["loss"])
        assert sum(part["sae"] for part in r["parts"].values()) == pytest.approx(r["ways"]["sae"]["loss"])
        assert r["parts"]["floor"]["original"] == pytest.approx(r["floor"])
        assert (r["floor"] > 0) == (r["repeats_captions"] and r["images"] == "trained on")  # two are held out
        assert r["best_scale"]["sae"]["loss"] <= r["ways"]["sae"]["loss"] + 1e-6
    text = format_evaluation(found)
    assert "SAE + its error" in text
    assert "trained on, 158" in text


def test_a_transcoder_is_explained_without_a_random_error(root):
    options = EvaluateOptions(device="cpu", overwrite=True, explain=True)
    found = evaluate(root / "transcoder", root / "other", options)
    for record in found.document["explanation"]:
        assert set(record["ways"]) == {"original", "sae", "with_error"}
        assert record["images"] == "given"
    assert format_evaluation(found)


def test_the_random_error_is_as_large_as_the_sae_s(root):
    from thresher.analysis.spliced_embeddings import _RandomError

    sae = open_run(root / "cls").load_sae()
    x = torch.randn(50, 192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = sae.decode(sae.encode(x), x) - x
        erring = _RandomError(sae, 1)
        drawn = erring.decode(erring.encode(x), x) - x
    torch.testing.assert_close(drawn.norm(dim=1), own.norm(dim=1))
    assert torch.cosine_similarity(drawn, own).abs().mean() < 0.2


def _random_batch(seed, own, e=16, noise=1.0):
    draw = np.random.default_rng(seed)
    texts = draw.standard_normal((max(own) + 1, e))
    images = texts[own] + noise * draw.standard_normal((len(own), e))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, texts))


def test_the_parts_are_those_of_the_formulas_and_add_up():
    own = np.array([0, 0, 0, 1, 2, 2, 3, 0])
    images, texts = _random_batch(1, own)
    s = 9.0 * images @ texts[own].T
    found = loss_parts(images, texts, own, 9.0)
    np.testing.assert_allclose(found.sum(1), image_losses(images, texts[own], 9.0), rtol=0, atol=1e-12)
    for i, c in enumerate(own):
        same = np.flatnonzero(own == c)
        expected = [
            np.log(len(same)),
            (logsumexp(s[i]) - logsumexp(s[i, same])) / 2,
            (logsumexp(s[:, i]) - logsumexp(s[same, i])) / 2,
            (logsumexp(s[same, i]) - np.log(len(same)) - s[i, i]) / 2,
        ]
        np.testing.assert_allclose(found[i], expected, rtol=0, atol=1e-12)
    assert found[:, 3].mean() > 0
    assert np.abs(found[[3, 6]][:, [0, 3]]).max() < 1e-12  # captions that stand once
    alike = np.array([0, 0, 1, 1])
    images, texts = _random_batch(2, alike, noise=0.0)
    assert loss_parts(images, texts, alike, 9.0)[:, 3] == pytest.approx(0, abs=1e-12)


def test_no_model_is_below_the_floor_of_repeated_captions():
    own = np.random.default_rng(0).integers(0, 50, 300)
    batches = repeated_batches(300, 100, 0)
    images, texts = _random_batch(3, own, e=200, noise=0.0)
    perfect = np.mean([info_nce(images[b], texts[own[b]], 500.0) for b in batches])
    assert caption_floor(own, batches) == pytest.approx(perfect, abs=1e-6)
    assert caption_floor(own, caption_batches(own, 50, 0)) == 0


def test_the_floor_of_the_post_s_batches_is_that_of_a_thousand_classes():
    own = np.random.default_rng(0).integers(0, 1000, 1024 * 40)
    assert caption_floor(own, repeated_batches(len(own), 1024, 0)) == pytest.approx(0.584, abs=0.01)


def test_the_best_scale_is_that_of_scipy():
    own = np.arange(30)
    images, texts = _random_batch(4, own, noise=2.0)
    batches = own[None]
    scale, loss = best_scale(images, texts, own, batches, 100.0)
    expected = minimize_scalar(lambda t: info_nce(images, texts, t), bounds=(1, 1000), method="bounded")
    assert loss == pytest.approx(expected.fun, abs=1e-6)
    assert scale == pytest.approx(expected.x, rel=5e-3)


def test_intervals_of_losses_are_those_of_resampled_images():
    draw = np.random.default_rng(0)
    own, batches = np.tile(np.arange(5), 30), np.arange(150).reshape(30, 5)
    original = draw.gamma(2.0, size=(30, 5))
    losses = {"original": original, "sae": original + draw.normal(0.1, 0.1, (30, 5)), "zero": original + 3}
    found = contrastive_numbers(losses, own, batches, seed=3)
    drawn = np.random.default_rng(3).integers(150, size=(1000, 150))
    sets = {way: values.ravel()[drawn].mean(1) for way, values in losses.items()}
    for got, values in (
        (found["ways"]["sae"]["loss_interval_images"], sets["sae"]),
        (found["ways"]["sae"]["difference_interval_images"], sets["sae"] - sets["original"]),
        (found["loss_recovered_interval_images"], (sets["zero"] - sets["sae"]) / 3),
    ):
        assert got == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-9)
    low, high = found["ways"]["sae"]["loss_interval_batches"]
    assert high - low == pytest.approx(2 * 1.96 * losses["sae"].mean(1).std() / math.sqrt(30), rel=0.15)
    assert "loss_recovered_of_mean" not in found


def test_a_few_images_have_no_intervals():
    values = np.ones((1, 5))
    found = contrastive_numbers({"original": values, "sae": values, "zero": values}, np.arange(5), np.arange(5)[None])
    assert found["ways"]["sae"]["loss_interval_images"] is None
    assert math.isnan(found["ways"]["sae"]["loss_standard_error"])
    assert math.isnan(found["loss_recovered"])


def test_ties_count_as_drawn_and_equal_models_agree():
    texts = np.eye(4)
    images = np.array([[0.6, 0.6, 0, 0], [0, 0, 0, 1.0], [0, 0, 0, 0]])
    own = np.array([1, 0, 2])
    found = zero_shot(images, images, texts, own, 10.0)
    assert found.top1.tolist() == [0.5, 0.0, 0.25]
    assert found.kl == pytest.approx(0)
    assert found.agrees.tolist() == [1, 1, 1]


def test_the_interval_of_a_class_holds_its_level_on_few_images():
    draw = np.random.default_rng(0)
    inside = []
    for _ in range(2000):  # 12 pairs: right after and not before 10 %, the reverse 25 %
        kind = draw.choice(3, size=12, p=[0.65, 0.1, 0.25])
        low, high = paired_interval((kind == 1).sum(), (kind == 2).sum(), 12)
        inside.append(low <= -0.15 <= high)
    assert np.mean(inside) > 0.93
    low, high = paired_interval(0, 0, 10)
    assert low == -high < 0
    # Agresti and Min's formula by hand: b* = 1.5, c* = 3.5, n* = 22
    width = 1.959964 * math.sqrt(5 - 4 / 22) / 22
    assert paired_interval(1, 3, 20) == pytest.approx((-2 / 22 - width, -2 / 22 + width))


def test_classes_stand_by_falling_damage_and_empty_ones_nowhere():
    own = np.array([0, 0, 2, 2, 2])
    original, sae = np.array([1.0, 1, 1, 1, 0]), np.array([1.0, 0, 1, 1, 1])
    zeros = np.zeros(5)
    found = class_damage(["a", "b", "c"], own, original, sae, zeros, zeros + 1)
    assert [(r["class"], r["n"]) for r in found] == [("a", 2), ("c", 3)]
    assert found[0]["difference"] == -0.5
    assert found[1]["difference"] == pytest.approx(1 / 3)


def test_the_command_writes_prints_and_refuses_to_replace(root):
    (root / "cls" / "evaluate.json").unlink(missing_ok=True)
    arguments = ["evaluate", str(root / "cls"), str(root / "other"), "--device", "cpu", "--quiet"]
    first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 0, first.output
    assert "15 batches of 4, no caption twice in one; guessing loses ln 4 = 1.386" in first.output
    assert ", in fp32; " in first.output
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert "evaluate.json exists: give --overwrite to replace it" in again.output
    as_json = CliRunner().invoke(main, [*arguments, "--overwrite", "--json", "--repeat-captions"])
    document = json.loads(as_json.stdout)
    assert document == read_evaluation(root / "cls")
    assert document["contrastive"]["batch_size"] == 60
    assert document["precision"] == open_store(root / "cls.zarr").provenance.precision == "fp32"
    lines = (root / "cls" / "evaluate_classes.tsv").read_text().splitlines()
    assert lines[0].split("\t")[:2] == ["class", "n"]
    assert len(lines) == 5


def test_there_may_be_no_evaluation(tmp_path):
    assert read_evaluation(tmp_path) is None
    (tmp_path / "evaluate.json").write_text("{")
    with pytest.raises(StoreError, match="run `thresher evaluate --overwrite`"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_images": 1}, "n_images must be at least 2"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"templates": "x"}, "templates must be one of none, simple, openai"),
        ({"caption": "none"}, "must hold {} once"),
    ],
)
def test_options_that_will_not_do_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluateOptions(**options)


def test_images_that_will_not_do_are_named(root, tmp_path):
    options = EvaluateOptions(device="cpu", overwrite=True)
    pictures(tmp_path / "flat", 2, classes=(".",))
    pictures(tmp_path / "one", 2, classes=("apple",))
    (tmp_path / "broken" / "a").mkdir(parents=True)
    (tmp_path / "broken" / "b").mkdir()
    for name in "ab":
        (tmp_path / "broken" / name / "1.png").write_bytes(b"no picture")
    for name, error, message in (
        ("flat", ValueError, "has no labels|no names of classes"),
        ("one", ValueError, "have one caption"),
        ("broken", ValueError, "none of the 2 images to evaluate on can be read"),
        ("nowhere", FileNotFoundError, "does not exist"),
    ):
        with pytest.raises(error, match=message):
            evaluate(root / "cls", tmp_path / name, options)


def test_unreadable_images_are_left_out_and_counted(root, tmp_path):
    folder = pictures(tmp_path / "some", 3)
    (folder / "apple" / "some 1.png").write_bytes(b"no picture")
    heard = Listener()
    found = evaluate(root / "cls", folder, EvaluateOptions(device="cpu", overwrite=True), heard).document
    assert (found["n_images"], found["n_unreadable"]) == (11, 1)
    assert any("1 of 12 images cannot be read" in line for line in heard.warned)
    assert any("none of the images has the key of one in the store" in line for line in heard.warned)


def test_a_set_of_training_images_alone_is_refused(root, tmp_path):
    store = open_store(root / "cls.zarr")
    keys = store.keys(store.rows_of(np.arange(3)))
    for key in keys:
        target = tmp_path / "again" / key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((root / "trained" / key).read_bytes())
    with pytest.raises(ValueError, match=r"all 3 images .* have keys of training images"):
        evaluate(root / "cls", tmp_path / "again", EvaluateOptions(device="cpu", overwrite=True))


def test_a_site_of_means_cannot_be_spliced(root):
    options = HarvestOptions(
        model=EMBEDDED, layer=(2,), token="mean", batch_size=32, device="cpu", workers=0, thumbnails="off"
    )
    harvest(options, str(root / "trained"), str(root / "mean.zarr"))
    train_sae(root / "mean.zarr", root / "mean", k=4, expansion=2, batch_size=64, rows=128, warmup=1, device="cpu")
    with pytest.raises(ValueError, match="mean of the patches is no place"):
        evaluate(root / "mean", root / "other", EvaluateOptions(device="cpu"))


def test_an_imported_sae_is_evaluated_on_all_images_with_a_warning(root):
    from thresher.train.interchange import export_sae, import_sae
    from thresher.train.interchange_options import ExportOptions, ImportOptions

    export_sae(root / "cls", root / "exported", ExportOptions(format="saelens"))
    import_sae(root / "exported", root / "imported", ImportOptions(store=str(root / "cls.zarr")))
    heard = Listener()
    options = EvaluateOptions(device="cpu", overwrite=True)
    found = evaluate(root / "imported", root / "other", options, heard).document
    own = evaluate(root / "cls", root / "other", options).document
    assert found["contrastive"]["ways"]["sae"]["loss"] == pytest.approx(
        own["contrastive"]["ways"]["sae"]["loss"], abs=1e-5
    )
    assert any("which images its SAE was trained on is not known" in line for line in heard.warned)
