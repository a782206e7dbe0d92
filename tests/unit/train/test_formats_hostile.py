"""Files cut short, that do not fit together, hold no finite numbers or want code to run: one line, nothing written."""

import json
import os
import pickle
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from thresher.store.errors import StoreError
from thresher.store.files import FolderLock
from thresher.train.formats import read_foreign
from thresher.train.formats.reading import read_json
from thresher.train.interchange import import_sae
from thresher.train.interchange_options import ImportOptions

D, F = 4, 6
CFG = {"architecture": "standard", "d_in": D, "d_sae": F, "metadata": {"sae_lens_version": "6.18.0"}}


def weights(**changes):
    state = {
        "W_enc": torch.ones(D, F),
        "b_enc": torch.zeros(F),
        "W_dec": torch.ones(F, D),
        "b_dec": torch.zeros(D),
    }
    state |= changes
    return {name: tensor for name, tensor in state.items() if tensor is not None}


def saelens(folder: Path, cfg: dict | None = None, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(cfg if cfg is not None else CFG))
    save_file(weights(**changes), folder / "sae_weights.safetensors")
    return folder


def refused(source: Path, says: str, tmp_path: Path, **options) -> None:
    """`import` gives one line, and writes nothing."""
    run = tmp_path / "run"
    with pytest.raises(StoreError, match=says) as caught:
        import_sae(source, run, ImportOptions(**options))
    assert "\n" not in str(caught.value).strip()
    assert not run.exists()


WRONG = {
    "a matrix the other way round": ({"W_dec": torch.ones(D, F)}, r"W_dec has shape \(4, 6\), and \(6, 4\) is needed"),
    "a bias too long": ({"b_enc": torch.zeros(F + 1)}, r"b_enc has shape \(7,\)"),
    "a bias of two dimensions": ({"b_dec": torch.zeros(1, D)}, r"b_dec has shape \(1, 4\)"),
    "no features": ({"W_enc": torch.ones(D, 0)}, r"W_enc has shape \(4, 0\)"),
    "NaN": ({"W_enc": torch.full((D, F), torch.nan)}, "W_enc holds 24 numbers that are not finite"),
    "infinity": ({"b_dec": torch.tensor([0, torch.inf, 0, 0])}, "b_dec holds 1 numbers that are not finite"),
    "too large for float32": ({"b_dec": torch.full((D,), 1e300, dtype=torch.float64)}, "not finite in float32"),
    "whole numbers": ({"W_enc": torch.ones(D, F, dtype=torch.int8)}, "W_enc is int8, where weights are floating-point"),
    "a tensor missing": ({"b_enc": None}, "holds no tensor b_enc; it holds W_dec, W_enc, b_dec"),
    "a tensor too many": ({"W_skip": torch.ones(D, D)}, "holds W_skip, which an SAE of this kind does not have"),
}


@pytest.mark.parametrize("what", WRONG)
def test_weights_that_are_not_as_they_should_be_are_named(what, tmp_path):
    changes, says = WRONG[what]
    refused(saelens(tmp_path / "sae", **changes), says, tmp_path)


CONFIGS = {
    "another architecture": ({**CFG, "architecture": "temporal"}, "architecture is 'temporal', and thresher reads"),
    "no k": ({**CFG, "architecture": "topk"}, "k is None, and must be a whole number"),
    "a k that is no number": ({**CFG, "architecture": "topk", "k": "many"}, "k is 'many'"),
    "a k that is a truth": ({**CFG, "architecture": "topk", "k": True}, "k is True"),
    "more k than features": ({**CFG, "architecture": "topk", "k": 7}, "must be from 1 to the 6 features"),
    "another width": ({**CFG, "d_in": 5}, "says d_in = 5, and sae_weights.safetensors has 4"),
    "another norm": ({**CFG, "normalize_activations": "covariance_whitening"}, "normalize_activations is"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_configuration_that_is_not_as_it_should_be_is_named(what, tmp_path):
    cfg, says = CONFIGS[what]
    refused(saelens(tmp_path / "sae", cfg), says, tmp_path)


def test_files_cut_short_at_any_byte_are_refused(tmp_path):
    source = saelens(tmp_path / "sae")
    whole = (source / "sae_weights.safetensors").read_bytes()
    for length in (0, 4, 8, 50, len(whole) - 1):
        (source / "sae_weights.safetensors").write_bytes(whole[:length])
        refused(source, "cannot be read as safetensors", tmp_path)
    (source / "sae_weights.safetensors").write_bytes(whole)
    (source / "cfg.json").write_bytes(b'{"d_in": ')
    refused(source, "is not JSON", tmp_path)
    (source / "cfg.json").write_bytes(b"[1]")
    refused(source, "holds no JSON object", tmp_path)
    (source / "cfg.json").write_bytes(b"\xff\xfe")
    refused(source, "is not JSON", tmp_path)
    (source / "cfg.json").write_bytes(b"[" * 100_000)
    refused(source, "is not JSON", tmp_path)


def dictionary_learning(folder: Path, content: bytes | dict) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "JumpReluAutoEncoder"}}))
    if isinstance(content, bytes):
        (folder / "ae.pt").write_bytes(content)
    else:
        torch.save(content, folder / "ae.pt")
    return folder


def test_torch_files_cut_short_at_any_byte_are_refused(tmp_path):
    source = dictionary_learning(tmp_path / "sae", weights(threshold=torch.ones(F)))
    whole = (source / "ae.pt").read_bytes()
    assert read_foreign(source)[1].sae.variant == "jumprelu"
    for length in (0, 1, 30, 200, len(whole) // 2, len(whole) - 1):
        refused(dictionary_learning(source, whole[:length]), "cannot be read as torch weights", tmp_path)
    refused(dictionary_learning(source, b"words"), "cannot be read as torch weights", tmp_path)
    refused(dictionary_learning(source, pickle.dumps([1, 2])), "torch weights|no weights by name", tmp_path)
    refused(dictionary_learning(source, {"W_enc": "text"}), "holds no tensor W_enc", tmp_path)


class _Touches:
    """Makes a file where it is unpickled as Python does it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class _Evaluates:
    def __reduce__(self):
        return eval, ("1 + 1",)


def test_a_pickle_with_code_is_refused_by_the_name_of_what_it_wants(tmp_path):
    mark = tmp_path / "it-ran"
    bad = weights(threshold=torch.ones(F)) | {"extra": _Touches(mark)}
    refused(dictionary_learning(tmp_path / "sae", bad), r"wants to load \w+\.system, which is not weights", tmp_path)
    bad = weights(threshold=torch.ones(F)) | {"extra": _Evaluates()}
    refused(dictionary_learning(tmp_path / "sae", bad), "wants to load .*eval", tmp_path)
    assert not mark.exists()


def test_a_post_file_with_code_in_its_configuration_is_refused(tmp_path):
    mark, path = tmp_path / "it-ran", tmp_path / "final.pt"
    # It names the post's module, and so is recognised as the post's.
    torch.save({"cfg": {"of": "sae_training.config", "x": _Touches(mark)}, "state_dict": weights()}, path)
    refused(path, r"wants to load \w+\.system", tmp_path)
    assert not mark.exists()


def test_an_archive_that_unpacks_to_more_than_itself_is_not_unpacked(tmp_path):
    source = dictionary_learning(tmp_path / "sae", weights(threshold=torch.ones(F)))
    with zipfile.ZipFile(source / "ae.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(source / "ae.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content + bytes(1_000_000 if name.endswith("/0") else 0))
    refused(source, "torch does not write such files", tmp_path)


def test_a_tensor_that_repeats_one_number_is_refused(tmp_path):
    state = weights(threshold=torch.ones(F), W_enc=torch.ones(1).expand(D, F))
    refused(dictionary_learning(tmp_path / "sae", state), "larger than what the file holds", tmp_path)


def test_a_sparse_tensor_is_refused(tmp_path):
    state = weights(threshold=torch.ones(F), W_enc=torch.ones(D, F).to_sparse())
    refused(dictionary_learning(tmp_path / "sae", state), "W_enc is|torch weights", tmp_path)


def test_what_is_no_format_is_told_what_was_looked_for(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    says = "Looked for saelens: cfg.json and sae_weights.safetensors; sparsify: .*; post: "
    refused(empty, says, tmp_path)
    (empty / "sae_weights.safetensors").write_bytes(save(weights()))
    refused(empty, says, tmp_path)  # a folder without its configuration
    refused(empty, "Looked for saev: a sae.pt", tmp_path, format="saev")
    refused(tmp_path / "nothing", "does not exist", tmp_path)
    (tmp_path / "text.pt").write_text("words")
    refused(tmp_path / "text.pt", "no SAE of a format", tmp_path)


def test_a_saev_file_of_a_schema_that_does_not_say_what_it_is_is_refused(tmp_path):
    path = tmp_path / "sae.pt"
    for header, says in (
        ({"schema": 1, "cfg": {}}, "schema 1, which does not say whether b_dec is subtracted"),
        ({"schema": 99, "cfg": {}}, "schema is 99"),
        ({"schema": 5}, "has no cfg with an activation"),
        ({"schema": 5, "cfg": {"activation": {"cls": "Exp", "params": {}}}}, "cls is 'Exp'"),
        ({"schema": 5, "cfg": {"activation": {"cls": "Relu", "params": {}}}}, "cannot be read as torch weights"),
    ):
        path.write_bytes(json.dumps(header).encode() + b"\n")
        refused(path, says, tmp_path)


def test_a_run_that_is_there_is_not_replaced_unasked(tmp_path):
    source = saelens(tmp_path / "sae")
    import_sae(source, tmp_path / "run")
    before = (tmp_path / "run/sae.safetensors").read_bytes()
    with pytest.raises(StoreError, match=r"already holds a run: replace it \(--overwrite\)"):
        import_sae(source, tmp_path / "run")
    assert (tmp_path / "run/sae.safetensors").read_bytes() == before
    import_sae(source, tmp_path / "run", ImportOptions(overwrite=True))
    # A source that cannot be read leaves the run that it was to replace.
    saelens(source, b_enc=torch.full((F,), torch.nan))
    with pytest.raises(StoreError, match="not finite"):
        import_sae(source, tmp_path / "run", ImportOptions(overwrite=True))
    assert (tmp_path / "run/sae.safetensors").read_bytes() == before


def test_a_json_file_too_large_to_be_a_configuration_is_not_parsed(tmp_path):
    path = tmp_path / "cfg.json"
    with open(path, "wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(StoreError, match="more than 16 MiB of JSON"):
        read_json(path)


def test_a_run_that_is_being_written_is_not_replaced_under_its_training(tmp_path):
    import_sae(saelens(tmp_path / "sae"), tmp_path / "run")
    before = (tmp_path / "run/config.json").read_bytes()
    with (
        closing(FolderLock(tmp_path / "run")),
        pytest.raises(StoreError, match="run is being written by another process"),
    ):
        import_sae(saelens(tmp_path / "sae"), tmp_path / "run", ImportOptions(overwrite=True))
    assert (tmp_path / "run/config.json").read_bytes() == before


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "pipe is neither a file nor a folder", tmp_path)


def test_weights_that_fit_no_configuration_are_told_with_their_place(tmp_path):
    source = saelens(tmp_path / "sae", {**CFG, "architecture": "topk", "k": F + 1})
    refused(source, rf"{source}: the weights do not fit together: k = 7 must be from 1 to the 6 features", tmp_path)


def test_features_below_zero_are_not_left_out_unsaid(tmp_path):
    folder = tmp_path / "sparsify"
    folder.mkdir()
    state = weights(**{"W_enc": None, "b_enc": None})
    save_file(state | {"encoder.weight": torch.ones(F, D), "encoder.bias": torch.zeros(F)}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"k": 2, "d_in": D, "signed": True}))
    refused(folder, "signed is set, and thresher's features are never below 0", tmp_path)


def test_a_run_is_told_to_need_no_import(tmp_path):
    import_sae(saelens(tmp_path / "sae"), tmp_path / "first")
    refused(tmp_path / "first", r"first is a run of thresher, which needs no import: `thresher encode", tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layer": 3}, "not known without --site and --token"),
        ({"layer": 3, "token": "cls"}, r"not known without --site \(or a --store that tells\)"),
        ({"site": "resid"}, "--site resid must be one of resid_post"),
        ({"layer": 1, "site": "resid_post", "token": "CLS"}, "--token CLS must be one of cls"),
        ({"layer": -2, "site": "resid_post", "token": "cls"}, "--layer -2 counts from a tower's last block: name its"),
    ],
)
def test_a_place_that_is_only_half_told_is_not_forgotten(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        import_sae(saelens(tmp_path / "sae"), tmp_path / "run", ImportOptions(**options))
    assert not (tmp_path / "run").exists()
