import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from listener import Listener
from PIL import Image
from thresher.analysis import spliced_training
from thresher.analysis.evaluation_images import captioned, decoded, held_out_images
from thresher.analysis.evaluation_setting import Captions, load_model, training_mean
from thresher.analysis.fidelity import evaluate_fidelity, fidelity
from thresher.analysis.spliced_training import HeldOutSplice
from thresher.analysis.train_sae import train_sae
from thresher.harvest.captions import class_captions, embed_captions, logit_scale
from thresher.harvest.continuation import embed_images, first_block_after, stream_entering
from thresher.harvest.images import open_images
from thresher.harvest.options import HarvestOptions
from thresher.harvest.run import harvest
from thresher.harvest.splice import splice
from thresher.harvest.vision import load_clip, load_tower, tower_of
from thresher.harvest.weights import EMBEDDED
from thresher.progress import Reporter
from thresher.store.errors import StoreError
from thresher.store.format import SITES, Site
from thresher.store.reader import open_store
from thresher.train.run_dir import open_run
from thresher.train.sweep import train_sweep

CLASSES = ("n01440764", "red_ball", "zebra")
LAYER = 4


def pictures(folder, n, *, seed=0, classes=CLASSES):
    """Class folders of n noisy pictures each, every class with its own colour."""
    draw = np.random.default_rng(seed)
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = draw.integers(0, 160, (64, 64, 3), dtype=np.uint8)
            pixels[..., c % 3] += 90
            Image.fromarray(pixels).save(folder / name / f"{folder.name} {i}.png")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two folders of pictures, the store of one of them, an SAE trained on it, and what was said on the way."""
    root = tmp_path_factory.mktemp("fidelity")
    trained, other = pictures(root / "trained", 70), pictures(root / "other", 8, seed=1)
    options = HarvestOptions(model=EMBEDDED, layer=(LAYER,), batch_size=32, device="cpu", workers=0, thumbnails="off")
    harvest(options, str(trained), str(root / "store"))
    heard = Listener()
    result = train_sae(
        root / "store",
        root / "run",
        reporter=heard,
        images=str(other),
        k=4,
        expansion=2,
        batch_size=64,
        rows=640,
        eval_every=4,
        warmup=2,
        device="cpu",
    )
    return SimpleNamespace(
        root=root, trained=trained, other=other, store=root / "store", run=root / "run", result=result, heard=heard
    )


@pytest.fixture(scope="module")
def tower():
    return load_tower(EMBEDDED)


class Halved:
    """An SAE of sorts: half of what passes, and a constant."""

    is_transcoder = False

    def __init__(self, d):
        self.d_in = self.d_out = d

    def encode(self, x):
        return x / 2

    def decode(self, f, x=None):
        return f + 0.1


def replaced(tower, images, site, change):
    """Unit embeddings by a hook of one's own and a whole pass, float64."""
    visual = copy.deepcopy(tower.visual)
    block = visual.transformer.resblocks[site.layer]

    def put(_module, _arguments, output):
        out = output.clone()
        out[:, 0] = change(out[:, 0])
        return out

    (block if site.site == "resid_post" else block.ls_1).register_forward_hook(put)
    with torch.no_grad():
        rows = visual(images).double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def scores(images, captions, own, scale):
    """Loss of one batch and top-1, in float64 by scipy."""
    from scipy.special import log_softmax

    logits = scale * images @ captions[own].T
    loss = -(np.diag(log_softmax(logits, 1)).mean() + np.diag(log_softmax(logits, 0)).mean()) / 2
    return loss, float(((images @ captions.T).argmax(1) == own).mean())


@pytest.mark.parametrize("site", [Site(LAYER), Site(2, "attn_out")])
def test_every_number_equals_that_of_whole_passes_with_a_hook_of_ones_own(made, tower, site):
    names = ("tench", "red ball", "zebra")
    draw = np.random.default_rng(5)
    texts = draw.standard_normal((3, 128))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    mean = torch.linspace(-1, 1, 192)
    with open_images(made.other) as images:
        chosen = captioned(images, np.array([0, 9, 17]))  # one of each class
        assert chosen.captions == class_captions(names)
        found = fidelity(tower, Captions(texts, 20.0), images, chosen, Halved(192), site, mean=mean, images_at_once=2)
        pixels = torch.cat([some for _, some in decoded(images, chosen.images, tower, batch_size=8, workers=0)])
    batch = tower.normalise(pixels)
    changes = {
        "original": lambda x: x,
        "sae": lambda x: x / 2 + 0.1,
        "zero": torch.zeros_like,
        "mean": lambda x: mean.expand(x.shape),
    }
    for way, change in changes.items():
        loss, top1 = scores(replaced(tower, batch, site, change), texts, np.arange(3), 20.0)
        numbers = getattr(found, way)
        assert numbers.loss == pytest.approx(loss, abs=1e-5), way
        assert numbers.top1 == top1
        assert numbers.top5 == 1
        assert math.isnan(numbers.loss_standard_error)
    losses = {way: getattr(found, way).loss for way in changes}
    recovered = (losses["zero"] - losses["sae"]) / (losses["zero"] - losses["original"])
    assert found.loss_recovered == pytest.approx(recovered)
    assert (found.n_images, found.batch_size, found.n_batches) == (3, 3, 1)
    assert found.ln_batch_size == pytest.approx(math.log(3))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_tower_run_from_a_block_gives_what_the_whole_one_gives(site, batch_first):
    whole = load_tower(EMBEDDED)
    if not batch_first:
        transformer = open_clip.transformer.Transformer(192, 6, 3, batch_first=False)
        transformer.load_state_dict(whole.visual.transformer.state_dict())
        whole.visual.transformer = transformer.eval()
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    place = Site(3, site, "all")
    layer = first_block_after(place)
    assert layer == (4 if site == "resid_post" else 3)
    stream = stream_entering(whole, images, [layer])[layer]
    ran = []
    handles = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(whole.blocks)]
    d = 768 if site == "mlp_act" else 192
    for splicing in (lambda: None, lambda: splice(whole, Halved(d), place)):
        ran.clear()
        got = embed_images(whole, None, splicing(), layer=layer, stream=stream)
        assert ran == list(range(layer, 6))
        torch.testing.assert_close(got, embed_images(whole, images, splicing()), rtol=0, atol=1e-6)
        assert len(whole.blocks) == 6
    for handle in handles:
        handle.remove()


def test_streams_of_several_blocks_come_from_one_pass(tower):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ran = []
    handle = tower.blocks[0].register_forward_hook(lambda *_: ran.append(1))
    streams = stream_entering(tower, images, [2, 6])
    handle.remove()
    assert sorted(streams) == [2, 6]
    assert len(ran) == 1


def test_images_that_were_trained_on_are_left_out_by_key(made):
    store = open_store(made.store)
    rows = store.rows_of(np.arange(store.n_train))
    trained = set(store.keys(rows))
    with open_images(made.trained) as images:
        held_out = held_out_images(images, store)
        assert {images.keys[i].decode() for i in held_out.images} == {k.decode() for k in images.keys} - trained
        assert (held_out.n_trained_on, held_out.n_in_store) == (store.n_train, 210)
        assert f"{store.n_train:,} images that the SAE was trained on are left out" in held_out.note


def test_images_of_the_store_that_cannot_be_read_count_as_not_trained_on(make_store):
    made = make_store(300, invalid=(5,))
    store = open_store(made.path)
    images = SimpleNamespace(keys=made.keys, n_images=300)
    held_out = held_out_images(images, store)
    start, stop = store.split("heldout")
    expected = {store.unreadable[0].key, *store.keys(store.rows_of(np.arange(start, stop)))}
    assert {made.keys[i].decode() for i in held_out.images} == expected


def test_images_of_several_parts_and_many_tokens_are_known(make_store):
    from thresher.store.parts import merge_stores

    first = make_store(150, name="first.zarr", tokens=3, sites=(Site(1, token="patch"),), key_prefix="a/")
    second = make_store(120, name="second.zarr", tokens=3, sites=(Site(1, token="patch"),), key_prefix="b/", seed=1)
    both = first.path.parent / "both.zarr"
    merge_stores([str(first.path), str(second.path)], str(both))
    store = open_store(both)
    keys = [b"c/new.jpg", *second.keys, *first.keys]
    held_out = held_out_images(SimpleNamespace(keys=keys, n_images=len(keys)), store)
    trained = set(store.keys(store.rows_of(np.arange(store.n_train))))
    assert {keys[i].decode() for i in held_out.images} == {k.decode() for k in keys} - trained
    assert held_out.n_in_store == 270


def test_other_images_are_said_to_be_taken_as_not_trained_on(made):
    with open_images(made.trained / "zebra") as images:  # from here the same pictures have other keys
        held_out = held_out_images(images, open_store(made.store))
    assert held_out.n_in_store == 0
    assert len(held_out.images) == 70
    assert "none of the images has the key of one in the store" in held_out.note


class Labelled:
    """An image set of labels alone."""

    description = "made up"

    def __init__(self, labels, names, keys=None):
        self.labels, self.label_names = np.array(labels), names
        self.keys = keys or [str(i).encode() for i in range(len(labels))]


def test_two_classes_of_one_name_share_their_caption():
    images = Labelled([0, 1, 2, -1, 1], ["crane", "tench", "crane"])
    found = captioned(images, np.arange(5))
    assert found.captions == ["A photo of a crane.", "A photo of a tench."]
    assert found.images.tolist() == [0, 1, 2, 4]
    assert found.own.tolist() == [0, 1, 0, 1]


def test_names_of_the_store_are_taken_where_its_labels_are_the_images_own(make_store):
    made = make_store(300, label_names=["alpha", "beta", "gamma", "delta", "epsilon"])
    store = open_store(made.path)
    same = Labelled(made.labels, ["0", "1", "2", "3", "4"], made.keys)
    assert captioned(same, np.arange(300), "{}", store).captions == ["alpha", "beta", "gamma", "delta", "epsilon"]
    others = Labelled((made.labels + 1) % 5, ["0", "1", "2", "3", "4"], made.keys)
    assert captioned(others, np.arange(300), "{}", store).captions == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([-1, -1], ["a", "b"], "made up has no labels"),
        ([0, 1], None, "made up has no names of classes"),
        ([1, 1], ["a", "b"], "have one caption"),
        ([0, 1], ["a", "a"], "have one caption"),
    ],
)
def test_images_that_captions_cannot_be_made_for_are_named(labels, names, message):
    with pytest.raises(ValueError, match=message):
        captioned(Labelled(labels, names), np.arange(2))


def test_a_caption_needs_one_place_for_the_name():
    assert class_captions(["fire_truck"], "a {}, drawn") == ["a fire truck, drawn"]
    for template in ("a photo", "{} and {}"):
        with pytest.raises(ValueError, match=r"must hold \{\} once"):
            class_captions(["x"], template)


def test_captions_are_embedded_as_the_embedded_models_page_says():
    clip = load_clip(EMBEDDED)
    folder = str(clip.source.folder)
    tokenize = open_clip.get_tokenizer("local-dir:" + folder, bpe_path=folder + "/bpe_4096.txt.gz")
    said = ["face smiling", "a red heart", "flags"]
    with torch.no_grad():
        expected = clip.model.encode_text(tokenize(said), normalize=True)
    torch.testing.assert_close(embed_captions(clip, said), expected)
    assert logit_scale(clip) == pytest.approx(math.exp(clip.model.logit_scale.item()))
    assert not any(parameter.is_inference() for parameter in clip.model.parameters())


def test_captions_of_a_model_with_another_vocabulary_are_refused(tmp_path):
    source = load_clip(EMBEDDED).source
    config = json.loads((source.folder / "open_clip_config.json").read_text())
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    clip = load_clip(str(tmp_path), "none")
    with pytest.raises(ValueError, match="knows 4096 tokens and its tokenizer makes 49408"):
        embed_captions(clip, ["a"])


def test_the_sample_is_scored_as_all_at_once_with_and_without_memory(made, tower):
    with open_images(made.other) as images:
        chosen = captioned(images, np.arange(24))
        pixels = torch.cat([some for _, some in decoded(images, chosen.images, tower, batch_size=64, workers=0)])
        _, captions = load_model(open_store(made.store).provenance, chosen.captions, "cpu")
        sae = Halved(192)
        expected = fidelity(tower, captions, images, chosen, sae, Site(LAYER))
    for memory, n_blocks in ((1.0, 1), (0.0, 6)):
        heard = Listener()
        probe = HeldOutSplice(tower, captions, pixels, chosen.own, 0, memory, heard)
        probe.prepare([(Site(LAYER), None)])
        ran = []
        handles = [b.register_forward_hook(lambda *_, ran=ran: ran.append(1)) for b in tower.blocks]
        found = probe.evaluate(sae, Site(LAYER), None)
        for handle in handles:
            handle.remove()
        assert len(ran) == n_blocks
        assert any(f"runs {n_blocks} of the tower's 6 blocks" in line for line in heard.said)
        assert bool(heard.warned) == (memory == 0)
        for name, value in (
            ("contrastive_loss", expected.sae.loss),
            ("contrastive_loss_standard_error", expected.sae.loss_standard_error),
            ("contrastive_loss_original", expected.original.loss),
            ("contrastive_loss_zero", expected.zero.loss),
            ("loss_recovered", expected.loss_recovered),
            ("zero_shot_top1", expected.sae.top1),
            ("zero_shot_top1_original", expected.original.top1),
        ):
            assert found[name] == pytest.approx(value, abs=1e-5), name


def test_original_and_ablated_losses_of_a_sweep_are_computed_once(made, tower):
    pixels = torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    texts = np.eye(128)[:3]
    probe = HeldOutSplice(tower, Captions(texts, 10.0), pixels, np.arange(6) % 3, 0, 1.0, Reporter())
    sites = [(Site(LAYER), None), (Site(LAYER, "attn_out"), None), (Site(0, "resid_pre"), None)]
    probe.prepare(sites)
    passes = []
    handle = tower.visual.ln_post.register_forward_hook(lambda *_: passes.append(1))
    for site, _ in sites:
        found = probe.evaluate(Halved(192), site, None)
        assert found["n_images"] == 6
    handle.remove()
    assert len(passes) == 3  # the spliced ones alone


def test_the_images_of_a_sweep_are_decoded_once(made, tmp_path, monkeypatch):
    n_decoded = []

    def counted(*arguments, **options):
        for places, pixels in decoded(*arguments, **options):
            n_decoded.append(len(places))
            yield places, pixels

    monkeypatch.setattr(spliced_training, "decoded", counted)
    given = {"k": [4, 8, 12], "expansion": [2], "batch_size": [64], "rows": [320], "warmup": [2], "device": ["cpu"]}
    result = train_sweep(
        {**given, "images": [str(made.other)]}, made.store, tmp_path / "sweep", splicer=spliced_training.splicer
    )
    assert {each.spliced["n_images"] for each in result.results.values()} == {24}
    assert sum(n_decoded) == 24


def test_a_run_trained_with_images_logs_what_its_tower_scores(made):
    records = [r for r in open_run(made.run).metrics() if r["split"] == "heldout"]
    assert [r["step"] for r in records] == [1, 2, 4, 8, 10]  # powers of two before --eval-every
    for record in records:
        assert record["n_images"] == 24
        assert record["contrastive_batch_size"] == 3
        assert record["contrastive_loss_original"] == records[0]["contrastive_loss_original"]
        assert record["explained_variance"] is not None
        gap = record["contrastive_loss_zero"] - record["contrastive_loss_original"]
        recovered = (record["contrastive_loss_zero"] - record["contrastive_loss"]) / gap
        assert record["loss_recovered"] == pytest.approx(recovered)
        assert 0 <= record["zero_shot_top1"] <= record["zero_shot_top5"] == 1
    assert made.result.spliced["contrastive_loss"] == records[-1]["contrastive_loss"]
    assert any("8 batches of 3 (guessing: ln 3 = 1.099)" in line for line in made.heard.said)
    assert any("images/s" in line for line in made.heard.said)


def test_the_last_record_is_what_evaluating_the_finished_run_gives(made):
    heard = Listener()
    found = evaluate_fidelity(made.run, made.other, device="cpu", reporter=heard)
    last = made.result.spliced
    assert found.sae.loss == pytest.approx(last["contrastive_loss"], abs=1e-5)
    assert found.original.loss == pytest.approx(last["contrastive_loss_original"], abs=1e-5)
    assert found.zero.loss == pytest.approx(last["contrastive_loss_zero"], abs=1e-5)
    assert found.mean is not None
    assert found.mean.loss != found.zero.loss
    assert found.n_images == 24


def test_evaluating_on_the_training_folder_takes_the_held_out_images_alone(made):
    heard = Listener()
    found = evaluate_fidelity(made.run, made.trained, device="cpu", reporter=heard)
    assert found.n_images == open_store(made.store).n_held_out
    assert any("are left out" in line for line in heard.said)


def test_the_posts_protocol_repeats_captions(made):
    found = evaluate_fidelity(made.run, made.other, device="cpu", repeat_captions=True, batch_size=12)
    assert (found.batch_size, found.n_batches, found.repeats_captions) == (12, 2, True)
    with pytest.raises(ValueError, match="batch_size 1 must be at least 2"):
        evaluate_fidelity(made.run, made.other, device="cpu", batch_size=1)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ("flat", ValueError, "has no labels|no names of classes"),
        ("nowhere", FileNotFoundError, "does not exist"),
    ],
)
def test_images_that_will_not_do_are_named_before_a_run_is_made(made, tmp_path, images, error, message):
    pictures(tmp_path / "flat", 2, classes=(".",))
    with pytest.raises(error, match=message):
        train_sae(made.store, tmp_path / "run", images=str(tmp_path / images), rows=1024, device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_tower_that_is_not_the_stores_is_named_before_a_run_is_made(made, tmp_path, monkeypatch):
    monkeypatch.setattr("thresher.harvest.vision.weights_sha256", lambda _: "1" * 64)
    with pytest.raises(
        StoreError, match=r"is not the model of this store any more: weights_sha256 is '\w+' there and '1+'"
    ):
        train_sae(made.store, tmp_path / "run", images=str(made.other), rows=1024, device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_store_of_means_cannot_be_spliced(tower):
    pixels = torch.zeros(4, 64, 64, 3, dtype=torch.uint8)
    probe = HeldOutSplice(tower, Captions(np.eye(128)[:2], 10.0), pixels, np.array([0, 1, 0, 1]), 0, 1.0, Reporter())
    with pytest.raises(ValueError, match="mean of the patches is no place"):
        probe.prepare([(Site(2, token="mean"), None)])


def test_training_on_images_from_python_needs_a_splicer(made, tmp_path):
    from thresher.train.loop import train
    from thresher.train.options import TrainOptions

    with pytest.raises(ValueError, match=r"thresher\.train_sae"):
        train(TrainOptions(images="x", rows=1024, device="cpu"), made.store, tmp_path / "run")


@pytest.mark.parametrize(("token", "tokens"), [("cls", 1), ("patch", 3), ("all", 4)])
def test_the_mean_is_that_of_the_training_rows_by_token(make_store, token, tokens):
    site = Site(1, token=token)
    made = make_store(150, 6, sites=(site,), tokens=tokens, dtype="float32", invalid=(3,))
    store = open_store(made.path)
    rows = store.rows_of(np.arange(store.n_train))
    token_of = made.order.tokens(rows)
    expected = np.stack([made.rows[site][rows[token_of == t]].astype(np.float64).mean(0) for t in range(tokens)])
    found = training_mean(store.activations(site)).numpy()
    np.testing.assert_allclose(found, expected if tokens > 1 else expected[0], rtol=0, atol=1e-6)


def test_a_tower_of_a_loaded_model_is_its_own(tower):
    clip = load_clip(EMBEDDED)
    assert tower_of(clip).visual is clip.model.visual
    assert tower_of(clip).weights_sha256 == tower.weights_sha256
