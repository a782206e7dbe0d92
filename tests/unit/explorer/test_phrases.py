"""Phrases and features in one space: a planted tower whose directions are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from thresher.analysis.explorer import phrases
from thresher.analysis.explorer.page import BadQuery, Unavailable
from thresher.analysis.explorer.runs import ExploredRun
from thresher.store.format import Site


class PlantedTower:
    """Texts are embedded as pictures of their first word are: axis `ord(word[0]) % d` of the stored vectors."""

    def __init__(self, run: ExploredRun, site: Site, d: int) -> None:
        self.site, self.d = site, d
        self.n_calls = 0
        norm = torch.nn.LayerNorm(d)
        self.visual = torch.nn.Module()
        self.visual.ln_post = norm
        self.visual.proj = torch.nn.Parameter(torch.eye(d))
        self.visual.transformer = SimpleNamespace(resblocks=[0] * (site.layer + 1))

    def turn(self):
        return __import__("contextlib").nullcontext()

    def clip(self):
        return SimpleNamespace(model=SimpleNamespace(visual=self.visual)), None

    def embed_text(self, texts: list[str], *, caption: str = "A photo of a {}.") -> np.ndarray:
        assert caption == "{}"
        self.n_calls += 1
        return np.stack([np.eye(self.d, dtype=np.float32)[ord(text[0]) % self.d] for text in texts])


@pytest.fixture
def planted(run_path) -> ExploredRun:
    run = ExploredRun(run_path)
    run.__dict__["tower"] = PlantedTower(run, run.site, run.run.d_in)
    return run


def test_scores_are_cosines_with_the_mean_embedding_of_the_largest_rows(planted: ExploredRun) -> None:
    """Against numpy in float64, a feature at a time."""
    rows = planted.store.activations(planted.site).read(0, planted.store.n_rows).astype(np.float64)
    embedded = rows - rows.mean(axis=1, keepdims=True)
    embedded /= np.sqrt(embedded.var(axis=1, keepdims=True) + 1e-5)
    embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
    top = planted.stored.statistics.top_row
    means = np.stack([embedded[[r for r in top[f, :8] if r >= 0]].mean(axis=0) for f in planted.shown])
    directions = means - means.mean(axis=0)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    from open_clip import IMAGENET_CLASSNAMES  # the made run has fewer classes than say what texts share

    text = planted.tower.embed_text(["dog"], caption="{}")[0].astype(np.float64)
    names = IMAGENET_CLASSNAMES[:: -(-len(IMAGENET_CLASSNAMES) // 256)]
    text -= planted.tower.embed_text(names, caption="{}").mean(axis=0)
    expected = directions @ (text / np.linalg.norm(text))
    np.testing.assert_allclose(phrases.scores(planted, "dog"), expected, atol=2e-4)
    ids, found = phrases.rank(planted, "dog")
    assert sorted(ids.tolist()) == planted.shown.tolist()
    assert (np.diff(found) <= 0).all()
    assert phrases.phrase_space(planted).is_exact


def test_a_phrase_is_embedded_once_and_directions_are_made_once(planted: ExploredRun) -> None:
    phrases.rank(planted, "a flag")
    n = planted.tower.n_calls
    phrases.rank(planted, " a \n flag\x00 ")
    assert planted.tower.n_calls == n
    phrases.rank(planted, "b")
    assert planted.tower.n_calls == n + 1


@pytest.mark.parametrize("text", ["", "   ", "\x00\x01\n", "\u200b"])
def test_a_phrase_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(BadQuery, match="type a word"):
        phrases.clean_phrase(text)


def test_a_phrase_of_ten_thousand_characters_is_refused() -> None:
    with pytest.raises(BadQuery, match="at most 200 characters, not 10,000"):
        phrases.clean_phrase("x" * 10_000)


def test_a_run_of_another_place_than_the_stream_has_no_phrases(run_path) -> None:
    run = ExploredRun(run_path)
    run.__dict__["tower"] = PlantedTower(run, Site(1, "mlp_act"), 8)
    with pytest.raises(Unavailable, match="residual stream"):
        phrases.rank(run, "dog")


def test_a_vector_that_is_the_mean_has_no_direction() -> None:
    mean = np.array([0.6, 0.8], np.float32)
    found = phrases.centred_unit(np.array([[0.6, 0.8], [1.6, 0.8]], np.float32), mean)
    np.testing.assert_allclose(found, [[0, 0], [1, 0]])


def test_a_tower_that_pools_by_attention_is_refused() -> None:
    visual = torch.nn.Module()
    visual.attn_pool = torch.nn.Identity()
    with pytest.raises(Unavailable, match="attention"):
        phrases.embed_vectors(visual, torch.zeros(1, 2))


@pytest.mark.parametrize("address", ["/phrase.json?q=", "/phrase.bin?q=%00", "/phrase.json?q=dog&n=0"])
def test_addresses_answer_nonsense_with_one_line(client: TestClient, address: str) -> None:
    answer = client.get(address)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_a_run_without_its_tower_says_so(client: TestClient) -> None:
    """The made run's tower has no weights anywhere."""
    answer = client.get("/phrase.json?q=dog")
    assert answer.status_code == 503
    assert "\n" not in answer.json()["error"]
