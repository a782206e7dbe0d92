"""An imported run works where it can, and says in one line what it lacks where it cannot."""

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from thresher.analysis.describe import describe
from thresher.analysis.encode import encode
from thresher.analysis.features import open_features
from thresher.analysis.options import EncodeOptions, StatsOptions
from thresher.analysis.stats import stats
from thresher.store.errors import StoreError
from thresher.store.format import Site
from thresher.train.interchange import export_sae, import_sae, origin_of
from thresher.train.interchange_options import ExportOptions, ImportOptions
from thresher.train.loop import train
from thresher.train.models import SparseAutoencoder, load_sae
from thresher.train.options import TrainOptions
from thresher.train.recipes import resumed_options
from thresher.train.run_dir import open_run

CPU = EncodeOptions(device="cpu")
TRAINING = TrainOptions(k=4, expansion=2, lr=3e-3, warmup=2, batch_size=32, rows=64, device="cpu", log_every=1)


@pytest.fixture
def trained(make_store, tmp_path):
    """A store and a run on it."""
    made = make_store()
    train(TRAINING, made.path, tmp_path / "trained")
    return made, tmp_path / "trained"


def exported(run: Path, out: Path, **options) -> Path:
    export_sae(run, out, ExportOptions(**options))
    return out


def same_function(first: Path, second: Path) -> None:
    x = torch.tensor(np.random.default_rng(3).standard_normal((20, 8)), dtype=torch.float32)
    a, b = load_sae(first), load_sae(second)
    np.testing.assert_allclose(a.encode(x), b.encode(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(a(x), b(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["saelens", "sparsify", "dictionary_learning", "saev", "prisma", "thresher"])
def test_a_trained_run_goes_out_and_comes_back_with_the_same_function(name, trained, tmp_path):
    made, run = trained
    out = exported(run, tmp_path / "out", format=name)
    result = import_sae(out, tmp_path / "back", ImportOptions(store=str(made.path)))
    assert (result.format, result.site, result.variant) == (name, Site(1).path, "topk")
    same_function(run, tmp_path / "back")


def test_an_imported_run_with_a_store_is_encoded_counted_and_described(trained, tmp_path):
    made, run = trained
    source = exported(run, tmp_path / "out")
    back = tmp_path / "back"
    import_sae(source, back, ImportOptions(store=str(made.path)))
    encode(run, CPU)
    result = encode(back, CPU)
    theirs, ours = open_features(run), open_features(back)
    assert ours.info.nnz == theirs.info.nnz
    # Which rows it was trained on is not known: none is called a training row.
    assert (ours.info.n_train, ours.info.n_held_out) == (0, 0)
    assert not ours.info.is_training_store
    assert result.n_rows == 300
    document = stats(back, StatsOptions(figures=False)).summary
    assert document["n_rows"] == 300
    lines = dict(describe(back).lines)
    assert lines["state"] == f"imported from {source} (saelens)"
    assert lines["SAE"] == "topk, k 4: d_in 8, d_sae 16"
    assert "made.zarr" in lines["store"]
    config = json.loads((back / "config.json").read_text())
    assert set(config["imported"]["sha256"]) == {"cfg.json", "sae_weights.safetensors"}
    assert config["imported"]["config"]["k"] == 4
    assert "options" not in config
    # Its statistics go along when it leaves again.
    again = exported(back, tmp_path / "again")
    assert (again / "sparsity.safetensors").exists()


def test_an_imported_run_without_a_store_says_so_where_one_is_needed(trained, tmp_path):
    made, run = trained
    back = tmp_path / "back"
    import_sae(exported(run, tmp_path / "out"), back)
    assert "none: name one with `thresher encode --store`" in dict(describe(back).lines)["store"]
    with pytest.raises(StoreError, match=r"back was imported without a store: name one with --store\."):
        encode(back, CPU)
    encode(back, EncodeOptions(device="cpu", store=str(made.path)))
    assert open_features(back).info.n_encoded == 300
    # Its files said where its inputs are read, and of which tower.
    assert open_run(back).site == Site(1)
    assert origin_of(open_run(back)).weights_sha256 == "0" * 64


def test_an_sae_that_does_not_say_where_its_inputs_are_read_takes_a_store_s_only_site(trained, make_store, tmp_path):
    made, run = trained
    source = exported(run, tmp_path / "out", format="sparsify")
    back = tmp_path / "back"
    import_sae(source, back)
    assert open_run(back).known_site is None
    with pytest.raises(StoreError, match="where its inputs are read is not known"):
        _ = open_run(back).site
    encode(back, EncodeOptions(device="cpu", store=str(made.path)))
    two = make_store(name="two.zarr", sites=(Site(1), Site(2)))
    with pytest.raises(StoreError, match="holds several sites"):
        encode(back, EncodeOptions(device="cpu", store=str(two.path), overwrite=True))
    with pytest.raises(StoreError, match="holds several sites"):
        import_sae(source, tmp_path / "other", ImportOptions(store=str(two.path)))
    import_sae(source, tmp_path / "other", ImportOptions(store=str(two.path), layer=2))
    assert open_run(tmp_path / "other").site == Site(2)


def test_a_killed_import_is_told_as_one_and_can_be_given_again(trained, tmp_path):
    made, run = trained
    source, back = exported(run, tmp_path / "out"), tmp_path / "back"
    with (
        mock.patch.object(SparseAutoencoder, "save", side_effect=KeyboardInterrupt),  # the weights are its last file
        pytest.raises(KeyboardInterrupt),
    ):
        import_sae(source, back, ImportOptions(store=str(made.path)))
    says = r"back holds no sae\.safetensors: its import did not finish\. .*`import`.* again with --overwrite"
    for use in (load_sae, lambda path: encode(path, CPU), lambda path: export_sae(path, tmp_path / "again")):
        with pytest.raises(StoreError, match=says):
            use(back)
    assert "unfinished: the same command again with --overwrite" in dict(describe(back).lines)["state"]
    import_sae(source, back, ImportOptions(overwrite=True))
    same_function(run, back)
    (run / "sae.safetensors").unlink()
    with pytest.raises(StoreError, match="its training did not finish"):
        load_sae(run)


def test_an_imported_run_has_no_training_to_go_on_with(trained, tmp_path):
    made, run = trained
    back = tmp_path / "back"
    import_sae(exported(run, tmp_path / "out"), back, ImportOptions(store=str(made.path)))
    says = r"back was imported \(saelens\): it has no training to go on with"
    with pytest.raises(StoreError, match=says):
        resumed_options(back, {})
    with pytest.raises(StoreError, match=says):
        train(TRAINING, made.path, back, resume=True)
    with pytest.raises(ValueError, match="imported, and which rows it was trained on is not known"):
        encode(back, EncodeOptions(device="cpu", split="heldout"))


def test_a_store_that_does_not_fit_is_refused_before_anything_is_written(trained, make_store, tmp_path):
    _, run = trained
    source, back = exported(run, tmp_path / "out", format="sparsify"), tmp_path / "back"
    wide = make_store(name="wide.zarr", d=9)
    with pytest.raises(StoreError, match=r"reads 8 inputs and .*wide\.zarr .* holds vectors of 9"):
        import_sae(source, back, ImportOptions(store=str(wide.path)))
    with pytest.raises(StoreError, match="does not hold the site asked for"):
        import_sae(source, back, ImportOptions(store=str(wide.path), layer=7))
    assert not back.exists()


def test_an_sae_is_not_put_on_a_store_of_another_tower(trained, tmp_path):
    made, run = trained
    source = exported(run, tmp_path / "out")
    cfg = json.loads((source / "cfg.json").read_text())
    cfg["metadata"]["thresher"]["weights_sha256"] = "f" * 64
    (source / "cfg.json").write_text(json.dumps(cfg))
    says = r"does not fit the SAE: weights_sha256 is f{12}\.\.\. there and 0{12}\.\.\. here"
    with pytest.raises(StoreError, match=says):
        import_sae(source, tmp_path / "back", ImportOptions(store=str(made.path)))
    import_sae(source, tmp_path / "back")
    with pytest.raises(StoreError, match=says):
        encode(tmp_path / "back", EncodeOptions(device="cpu", store=str(made.path)))


def test_an_export_replaces_nothing_unasked(trained, tmp_path):
    _, run = trained
    out = exported(run, tmp_path / "out")
    with pytest.raises(StoreError, match="is not empty: give --overwrite"):
        export_sae(run, out)
    export_sae(run, out, ExportOptions(overwrite=True))
    file = tmp_path / "one.pt"
    assert export_sae(run, file, ExportOptions(format="saev")).files == ["one.pt"]
    with pytest.raises(StoreError, match=r"one\.pt exists: give --overwrite"):
        export_sae(run, file, ExportOptions(format="saev"))
    with pytest.raises(StoreError, match="is a file: name a folder"):
        export_sae(run, file, ExportOptions(format="sparsify", overwrite=True))
    with pytest.raises(StoreError, match="post cannot hold an SAE of variant topk"):
        export_sae(run, tmp_path / "post", ExportOptions(format="post"))
    assert not (tmp_path / "post").exists()


@pytest.mark.parametrize("name", ["sparsify", "thresher"])
def test_an_export_goes_into_no_run_nor_store(name, trained, tmp_path):
    made, run = trained
    options, before = ExportOptions(format=name, overwrite=True), (run / "sae.safetensors").read_bytes()
    with pytest.raises(StoreError, match="is a run or a sweep, which an export does not go into"):
        export_sae(run, run, options)
    assert (run / "sae.safetensors").read_bytes() == before
    for out in (made.path, made.path / "below"):
        with pytest.raises(StoreError, match=r"lies inside the store .*: name another OUT"):
            export_sae(run, out, options)
    assert not (made.path / "sae.safetensors").exists()


def test_the_post_s_layer_is_counted_from_the_store_s_last(make_store, tmp_path):
    made = make_store()  # three blocks, of which it holds the second
    options = TrainOptions(
        variant="relu", expansion=2, warmup=2, batch_size=32, rows=64, device="cpu", normalize="none", log_every=1
    )
    train(options, made.path, tmp_path / "trained")
    out = exported(tmp_path / "trained", tmp_path / "sae.pt", format="post")
    state = (tmp_path / "trained/config.json").read_text()
    assert json.loads(state)["layer"] == 1
    from thresher.train.formats import post

    foreign = post.read(out)
    assert foreign.config["block_layer"] == 1
    same = tmp_path / "back"
    import_sae(out, same, ImportOptions(store=str(made.path), layer=-2))
    assert open_run(same).site == Site(1)
    same_function(tmp_path / "trained", same)


def test_a_damaged_configuration_of_an_imported_run_is_named(trained, tmp_path):
    _, run = trained
    back = tmp_path / "back"
    import_sae(exported(run, tmp_path / "out"), back)
    config = json.loads((back / "config.json").read_text())
    for change, says in (
        ({"imported": "saelens"}, "imported is 'saelens'"),
        ({"imported": {"source": "x"}}, "imported.format is None"),
        ({"site": 3}, "site is 3"),
        ({"store": {}}, "store.path is None"),
    ):
        (back / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(StoreError, match=f"is damaged: {says}"):
            open_run(back)


def test_no_path_of_this_machine_leaves_with_an_export(trained, tmp_path):
    _, run = trained
    config = json.loads((run / "config.json").read_text())
    config["store"]["provenance"] |= {"model": f"{tmp_path}/tower.json", "pretrained": f"{tmp_path}/weights.pt"}
    (run / "config.json").write_text(json.dumps(config))
    for name in ("saelens", "dictionary_learning", "saev", "prisma", "thresher"):
        out = exported(run, tmp_path / name, format=name)
        content = b"".join(path.read_bytes() for path in out.iterdir())
        assert str(tmp_path).encode() not in content, name
        assert b"tower.json" in content, name
