"""A run is pushed to the hub and pulled from it; what comes from there is bounded, and is whole or not there."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hub_on_loopback import TOKEN, Repository, hub_on_loopback
from huggingface_hub import constants
from thresher.store.errors import StoreError
from thresher.train.hub import pull, push
from thresher.train.interchange import ExportOptions, export_sae, outgoing
from thresher.train.interchange_options import PullOptions, PushOptions
from thresher.train.loop import train
from thresher.train.model_card import model_card
from thresher.train.models import load_sae
from thresher.train.options import TrainOptions
from thresher.train.run_dir import open_run

NAME = "someone/clip-sae"
FOLDER = "layer_1_resid_post_cls"
OPTIONS = TrainOptions(k=4, expansion=2, lr=3e-3, warmup=2, batch_size=32, rows=64, device="cpu", log_every=1)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, in place of the hub; no token but that of `tokens`."""
    with hub_on_loopback() as standing_in:
        monkeypatch.setattr(constants, "ENDPOINT", standing_in.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", standing_in.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield standing_in


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return str(path)


@pytest.fixture
def run(make_store, tmp_path):
    train(OPTIONS, make_store().path, tmp_path / "trained")
    return tmp_path / "trained"


def on_hub(hub, run, tmp_path, name=NAME, **options) -> Repository:
    """A repository that holds a run's SAE, put there without a push."""
    out = tmp_path / f"out-{len(hub.repositories)}"
    export_sae(run, out, ExportOptions(**options))
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    return hub.repositories.setdefault(name, Repository(files=files, sha="a" * 40))


@pytest.mark.parametrize("format_name", ["saelens", "thresher"])
def test_a_pushed_run_is_pulled_with_the_same_function(format_name, hub, run, token_file, tmp_path):
    result = push(run, NAME, PushOptions(format=format_name, token_file=token_file))
    repository = hub.repositories[NAME]
    assert result.folder == FOLDER
    assert set(repository.files) == set(result.files)
    assert result.commit == repository.sha
    pulled = pull(NAME, tmp_path / "back")
    assert pulled.format == format_name
    assert pulled.source == f"{NAME}@{repository.sha}:{FOLDER}"
    assert pulled.site == "layers/1/resid_post/cls"
    x = torch.tensor(np.random.default_rng(3).standard_normal((20, 8)), dtype=torch.float32)
    np.testing.assert_allclose(load_sae(tmp_path / "back")(x), load_sae(run)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "has", "has_not"),
    [
        (OPTIONS, {"k": "4", "error": "mse", "dead_remedy": "auxk"}, {"l1", "l0_penalty", "decoder_norm"}),
        (replace(OPTIONS, variant="jumprelu"), {"l0_penalty": "0.002", "dead_remedy": "preact"}, {"k", "l1"}),
        (replace(OPTIONS, variant="relu"), {"l1": "0.0007", "error": "normalized"}, {"k", "l0_penalty"}),
    ],
)
def test_the_model_card_names_the_options_that_acted_and_no_others(options, has, has_not, make_store, tmp_path):
    train(options, make_store().path, tmp_path / "trained")
    trained = open_run(tmp_path / "trained")
    card = model_card(trained, outgoing(trained), NAME, FOLDER, "saelens")
    training = dict(re.findall(r"^\| (\w+) \| (.*) \|$", card[card.index("## Training") :], re.MULTILINE))
    assert has.items() <= training.items()
    assert not has_not & set(training)


def test_the_model_card_has_the_run_s_numbers_and_says_how_it_is_loaded(hub, run, token_file):
    push(run, NAME, PushOptions(token_file=token_file))
    card = hub.repositories[NAME].files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: saelens\n")
    for line in (
        "A sparse autoencoder (topk) of 16 features of 8 inputs",
        "| layer (0-based) | 1 |",
        "| tower | tiny none |",
        "| rows | 3 (heldout) |",
        "| L0, mean |",
        "| explained variance |",
        "| k | 4 |",
        f"thresher pull {NAME} run --folder {FOLDER}",
        f'SAE.from_pretrained("{NAME}", "{FOLDER}")',
    ):
        assert line in card
    everything = b"".join(hub.repositories[NAME].files.values())
    assert str(run.parent).encode() not in everything  # no path of this machine goes out


def test_a_repository_is_made_private_where_that_is_asked(hub, run, token_file, tmp_path):
    push(run, NAME, PushOptions(private=True, token_file=token_file))
    assert hub.repositories[NAME].private
    with pytest.raises(StoreError, match=f"{NAME} is not on the hub, or is private to others"):
        pull(NAME, tmp_path / "back")
    pull(NAME, tmp_path / "back", PullOptions(token_file=token_file))


def refused(says, name, run_path, **options):
    with pytest.raises(StoreError, match=says) as caught:
        pull(name, run_path, PullOptions(**options))
    assert "\n" not in str(caught.value)
    assert not run_path.exists()


def test_what_the_hub_refuses_is_one_line(hub, run, token_file, tmp_path, monkeypatch):
    back = tmp_path / "back"
    with pytest.raises(StoreError, match=r"the hub (refuses access|wants an access token)"):
        push(run, NAME)
    (tmp_path / "wrong").write_text("hf_of_another")
    with pytest.raises(
        StoreError, match=r"refuses access to someone/clip-sae \(status 401\): give --token-file"
    ) as caught:
        push(run, NAME, PushOptions(token_file=str(tmp_path / "wrong")))
    assert "hf_of_another" not in str(caught.value)
    refused("someone/nothing is not on the hub", "someone/nothing", back)
    on_hub(hub, run, tmp_path)
    refused("has no such revision: check --revision", NAME, back, revision="v9")
    hub.repositories[NAME].gated = True
    refused("is gated: ask for access", NAME, back)
    for name in ("not a name", "../x", "a/b/c", "https://huggingface.co/someone/clip-sae", ""):
        with pytest.raises(ValueError, match=f"'{name}' names no repository of the hub: OWNER/NAME, of letters"):
            pull(name, back)
    (tmp_path / "two").write_text("one two")
    refused("does not hold one access token", NAME, back, token_file=str(tmp_path / "two"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(r"was not reached \(\w+\): is this machine online", NAME, back)


def test_a_machine_told_to_stay_offline_says_so(hub, run, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    from huggingface_hub import utils

    utils.reset_sessions() if hasattr(utils, "reset_sessions") else utils.close_session()
    try:
        refused("was not reached", NAME, tmp_path / "back")
    finally:
        monkeypatch.undo()
        utils.reset_sessions() if hasattr(utils, "reset_sessions") else utils.close_session()


@pytest.mark.parametrize("name", ["../../evil/sae.pt", "/etc/sae.pt", "a\\..\\sae.pt", "a//sae.pt", "C:/sae.pt"])
def test_a_file_whose_name_leads_out_of_its_folder_is_not_pulled(name, hub, run, tmp_path):
    on_hub(hub, run, tmp_path).files[name] = b"x"
    refused("leads out of its folder: it is not pulled", NAME, tmp_path / "back")
    assert not any("/resolve/" in each for each in hub.asked)


def test_only_the_files_of_a_format_are_asked_for(hub, run, tmp_path):
    on_hub(hub, run, tmp_path).files |= {"train.py": b"import os", "pytorch_model.bin": b"x", "big.npy": b"x"}
    pull(NAME, tmp_path / "back")
    asked = {each.rpartition("/")[2] for each in hub.asked if "/resolve/" in each}
    assert asked == {"cfg.json", "sae_weights.safetensors"}


def test_more_than_the_limit_is_not_downloaded(hub, run, tmp_path):
    repository = on_hub(hub, run, tmp_path)
    repository.sizes = {"sae_weights.safetensors": 17_000_000_000}
    refused(r"would be 17\.0 GB, more than --size-limit-gb 16", NAME, tmp_path / "back")
    repository.sizes = {"sae_weights.safetensors": None}
    refused("does not say how large", NAME, tmp_path / "back")
    assert not any("/resolve/" in each for each in hub.asked)
    repository.sizes = {"sae_weights.safetensors": 10}  # less than what then comes
    refused("came with another size", NAME, tmp_path / "back")


def test_of_several_saes_one_is_named(hub, run, tmp_path):
    files = on_hub(hub, run, tmp_path, name="someone/one").files
    many = {f"layer_{i}/{name}": content for i in (1, 2) for name, content in files.items()}
    hub.repositories[NAME] = Repository(files=many, sha="b" * 40)
    refused(r"holds 2 SAEs: name one with --folder \(layer_1, layer_2\)", NAME, tmp_path / "back")
    refused("holds no SAE in layer_3", NAME, tmp_path / "back", folder="layer_3")
    assert pull(NAME, tmp_path / "back", PullOptions(folder="layer_2")).source.endswith(":layer_2")
    hub.repositories["someone/none"] = Repository(files={"README.md": b"x"})
    refused("holds no SAE: none of ae.pt", "someone/none", tmp_path / "other")


def test_a_pulled_file_that_is_damaged_leaves_no_run(hub, run, tmp_path):
    on_hub(hub, run, tmp_path).files["sae_weights.safetensors"] = b"not weights"
    refused("cannot be read as safetensors", NAME, tmp_path / "back")


def test_a_folder_to_push_to_is_inside_the_repository(hub, run, token_file):
    with pytest.raises(ValueError, match="must be a path inside the repository"):
        push(run, NAME, PushOptions(folder="../x", token_file=token_file))
