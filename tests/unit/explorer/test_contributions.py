"""What features contribute to a class, against differences of the tower's own head in float64."""

from io import BytesIO

import numpy as np
import open_clip
import pytest
import torch
from live_run import CLASSES, make_live_run
from PIL import Image
from starlette.testclient import TestClient
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.contributions import gradient
from thresher.analysis.explorer.page import Unavailable
from thresher.analysis.explorer.runs import ExploredRun
from thresher.analysis.explorer.several import Explorer
from thresher.harvest.vision import load_clip, load_tower
from thresher.harvest.weights import EMBEDDED
from thresher.train.run_dir import open_run

ROWS = (0, 9)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_live_run(tmp_path_factory.mktemp("live"), layer=(5,))


@pytest.fixture(scope="module")
def client(path):
    with TestClient(make_app(Explorer([path])), base_url="http://127.0.0.1") as client:
        yield client


def doubles(tensor):
    return tensor.detach().double().numpy()


class Head:
    """The last layer norm and projection of the embedded model, and the classes' captions, in float64."""

    def __init__(self):
        loaded = load_clip(EMBEDDED)
        self.clip, folder = loaded.model, str(loaded.source.folder)
        tokenize = open_clip.get_tokenizer("local-dir:" + folder, bpe_path=folder + "/bpe_4096.txt.gz")
        with torch.no_grad():
            texts = self.clip.encode_text(tokenize([f"A photo of a {name.replace('_', ' ')}." for name in CLASSES]))
        self.texts = doubles(texts)
        self.texts /= np.linalg.norm(self.texts, axis=1, keepdims=True)
        self.scale = float(self.clip.logit_scale.detach().exp())

    def embedding(self, x):
        norm = self.clip.visual.ln_post
        x = (x - x.mean()) / np.sqrt(x.var() + norm.eps) * doubles(norm.weight) + doubles(norm.bias)
        e = x @ doubles(self.clip.visual.proj)
        return e / np.linalg.norm(e)

    def logit(self, x, place):
        logits = self.scale * (self.texts @ self.embedding(x))
        return logits[place] - logits.mean()


def test_contributions_are_the_slope_of_the_logit_along_each_feature(path, client):
    head, run, sae = Head(), ExploredRun(path), open_run(path).load_sae()
    store = run.require_store()
    [layer] = store.sites
    for row in ROWS:
        x = store.activations(layer).read(row, row + 1).astype(np.float64)[0]
        with torch.no_grad(), Image.open(BytesIO(run.original(row))) as opened:
            whole = head.clip.encode_image(load_tower(EMBEDDED).preprocess(opened.convert("RGB"))[None])[0]
        np.testing.assert_allclose(head.embedding(x), doubles(whole / whole.norm()), atol=1e-5)
        index, value = run.code(row)
        for place, name in enumerate(CLASSES):
            found = client.get(f"/i/{row}/contributions.json?class={name.upper()}").json()
            assert (found["name"], found["is_exact"]) == (name.replace("_", " "), True)
            assert found["features"] == index.tolist()
            step = 1e-4
            for feature, a, got in zip(index.tolist(), value.tolist(), found["values"], strict=True):
                w = doubles(sae.W_dec[feature]) * doubles(torch.as_tensor(sae.output_scale))
                slope = (head.logit(x + step * w, place) - head.logit(x - step * w, place)) / (2 * step)
                assert got == pytest.approx(a * slope, rel=1e-3, abs=1e-4)


def test_without_a_class_it_is_the_rows_own(path, client):
    run = ExploredRun(path)
    found = client.get("/i/9/contributions.json").json()
    assert found["name"] == run.label_name(int(run.row_number("label", 9))).replace("_", " ")
    assert len(found["classes"]) == len(CLASSES)


def test_what_cannot_be_told_is_said_in_one_line(client):
    answer = client.get("/i/0/contributions.json?class=no such <b>")
    assert (answer.status_code, answer.json()) == (400, {"error": "no class is called 'no such <b>'."})
    assert client.get(f"/i/0/contributions.json?class={'x' * 401}").status_code == 400
    assert client.get("/i/999999/contributions.json").status_code == 404
    with pytest.raises(Unavailable, match="pools all its tokens by attention"):
        gradient(torch.nn.Linear(2, 2), torch.ones(2), torch.ones(2))


def test_the_page_of_an_image_offers_it_and_counts_the_dense_set(path, client):
    run, page = ExploredRun(path), client.get("/i/0").text
    assert 'id="contributions"' in page
    of = run.stored.statistics
    index, _ = run.code(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        is_dense = (of.n_active / of.n_rows > 1e-4) & (np.log10(of.mean_top) > -0.7) & ~np.isnan(of.label_entropy)
    assert client.get("/i/0.json").json()["l0"]["dense"] == int(is_dense[index].sum())
