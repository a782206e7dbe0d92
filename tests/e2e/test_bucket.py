"""The real commands on a store in a bucket give what they give on a store on a disk."""

import json
import shutil

import numpy as np
import pytest
import zarr
from s3_on_loopback import BUCKET, SECRET, faulty_s3, s3_server
from thresher.store.bucket import Bucket

URL = f"s3://{BUCKET}/of a user/emoji.zarr"


@pytest.fixture(scope="module")
def servers():
    with s3_server() as server, faulty_s3(server) as proxy:
        yield server, proxy


@pytest.fixture(scope="module")
def chains(chain, servers, tmp_path_factory, thresher, harvest_arguments, train_arguments):
    """The chain's folder, one with a run on the same harvest in the bucket, and what was said then."""
    folder, said = tmp_path_factory.mktemp("bucket"), {}
    for command in (
        [*harvest_arguments, URL],
        ["train", URL, "run", *train_arguments],
        ["encode", "run", "--device", "cpu"],
        ["stats", "run", "--sheet-rows", "2"],
    ):
        said[command[0]] = thresher(*command, cwd=folder, environment=servers[0].environment)
    return chain[0], folder, said


@pytest.fixture
def there(servers, monkeypatch):
    for name, value in servers[0].environment.items():
        monkeypatch.setenv(name, value)
    return Bucket(URL)


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def arrays_of(path):
    group = zarr.open_group(path, mode="r")
    return {name: member[...] for name, member in group.members(max_depth=None) if isinstance(member, zarr.Array)}


def test_the_store_in_the_bucket_has_the_bytes_of_the_one_on_the_disk(chains, there):
    near, _, said = chains
    here = files_of(near / "emoji.zarr")
    assert dict(there.walk()) == {name: len(data) for name, data in here.items()}
    assert there.read_many(list(here)) == list(here.values())
    assert URL in said["harvest"].stdout
    assert f"Next: thresher train '{URL}' RUN" in said["harvest"].stdout


def test_training_gives_the_same_weights_bit_for_bit(chains):
    near, far, _ = chains
    assert (far / "run/sae.safetensors").read_bytes() == (near / "run/sae.safetensors").read_bytes()
    config = json.loads((far / "run/config.json").read_text())
    assert config["store"]["path"] == URL
    assert "path_from_run" not in config["store"]


@pytest.mark.parametrize("name", ["features.zarr", "stats.zarr"])
def test_features_and_statistics_are_the_same(chains, name):
    near, far, _ = chains
    here, there = arrays_of(near / "run" / name), arrays_of(far / "run" / name)
    assert set(here) == set(there)
    for array in here:
        np.testing.assert_array_equal(here[array], there[array], err_msg=array)


def test_the_sheets_show_the_same_pictures(chains):
    near, far, _ = chains
    sheets = sorted(path.name for path in (near / "run/figures").glob("sheet*.png"))
    assert sheets
    for sheet in sheets:
        assert (far / "run/figures" / sheet).read_bytes() == (near / "run/figures" / sheet).read_bytes()


def test_info_describes_both_alike(chains, servers, thresher, inside):
    near, far, _ = chains
    here = json.loads(inside("info", "emoji.zarr", "--json", cwd=near).stdout)
    there = json.loads(thresher("info", URL, "--json", environment=servers[0].environment).stdout)
    assert there.pop("path") == URL
    assert here.pop("path") == "emoji.zarr"
    assert here.pop("codec")["ratio"] == there.pop("codec")["ratio"]  # the advice depends on the place
    assert here == there
    run = inside("info", "run", cwd=far).stdout  # a run is described without its store
    assert URL in run


def test_verify_finds_the_store_whole_and_says_where_it_is_damaged(chains, servers, there, thresher, inside):
    environment = servers[0].environment
    assert "every checksum as committed" in inside("verify", URL, environment=environment).stdout
    name = "layers/4/resid_post/cls/c/3/0"
    whole = there.read(name)
    try:
        there.write(name, bytes([whole[0] ^ 1]) + whole[1:])
        done = thresher("verify", URL, status=1, environment=environment)
        assert "layers/4/resid_post/cls, chunk 3, rows 192 to 255" in done.stdout
    finally:
        there.write(name, whole)


def test_a_run_on_a_local_store_is_encoded_from_the_bucket_too(chains, servers, tmp_path, inside):
    near, _, _ = chains
    shutil.copytree(near / "run", tmp_path / "run")
    inside("encode", "run", "--store", URL, "--overwrite", cwd=tmp_path, environment=servers[0].environment)
    here, there = arrays_of(near / "run/features.zarr"), arrays_of(tmp_path / "run/features.zarr")
    for array in ("index", "value", "rows/split"):
        np.testing.assert_array_equal(here[array], there[array])


def test_a_second_harvest_into_the_bucket_changes_nothing_unless_told(
    chains, servers, there, inside, refused, harvest_arguments
):
    environment = servers[0].environment
    before = dict(there.walk())
    assert "nothing to do" in inside(*harvest_arguments, URL, environment=environment).stderr
    says = "dtype is 'float16' there"
    refused(*harvest_arguments, "--dtype", "float32", URL, says=says, environment=environment)
    assert dict(there.walk()) == before


def test_what_is_wrong_with_a_bucket_is_said_in_one_line(
    chains, servers, tmp_path, thresher, refused, harvest_arguments
):
    _, proxy = servers
    environment = proxy.environment
    for command in (harvest_arguments, ["info"]):
        said = refused(
            *[*command, "s3://no-such-bucket/x.zarr"],
            says=f"there is no bucket no-such-bucket at {proxy.endpoint}",
            cwd=tmp_path,
            environment=environment,
        )
        assert SECRET not in said
    refused("info", f"s3://{BUCKET}/nothing.zarr", says="does not exist", environment=environment)
    refused("info", f"s3://me:{SECRET}@{BUCKET}/x", status=2, says="carries credentials", environment=environment)
    proxy.plan(faults={"403": 1.0})
    said = refused("info", URL, says="answers 403", cwd=tmp_path, environment=environment)
    assert "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in said
    assert SECRET not in said
    proxy.plan()
