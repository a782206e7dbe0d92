"""Nothing is written inside a store but by the harvest that adds to it."""

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from thresher.store.bucket import Bucket
from thresher.store.errors import StoreError, UnreachableStoreError
from thresher.store.objects import LocalFolder
from thresher.store.outside import require_outside_stores
from thresher.store.parts import merge_stores


@pytest.fixture
def empty_memory():
    """What `memory://` holds lasts as long as the process."""
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def names_below(path):
    return {str(each.relative_to(path)) for each in path.rglob("*")}


@pytest.mark.parametrize("below", ["new", "layers/1/new", "parts/1", "../made.zarr/new"])
def test_a_place_below_a_store_is_refused(make_store, below):
    made = make_store(70)
    with pytest.raises(StoreError, match=r"lies inside the store .*made\.zarr: name another RUN, outside of it\."):
        require_outside_stores(made.path / below, "RUN")


def test_the_store_itself_and_what_lies_beside_it_are_not_inside_it(make_store, tmp_path):
    made = make_store(70)
    for place in (made.path, tmp_path / "new", tmp_path / "a/b/c", "relative"):
        require_outside_stores(place, "STORE")


def test_a_link_and_a_relative_path_that_lead_into_a_store_are_refused(make_store, tmp_path, monkeypatch):
    made = make_store(70)
    (tmp_path / "link").symlink_to(made.path / "layers")
    with pytest.raises(StoreError, match="lies inside the store"):
        require_outside_stores(tmp_path / "link/run", "RUN")
    monkeypatch.chdir(made.path / "layers")
    with pytest.raises(StoreError, match="run lies inside the store"):
        require_outside_stores("run", "RUN")


@pytest.mark.parametrize("left", [["creating"], ["commits/metadata.json"], ["zarr.json"]])
def test_what_is_left_of_a_store_counts_as_one(make_store, left):
    made = make_store(70)
    (made.path / "creating").write_bytes(b"")
    for path in made.path.rglob("*"):
        if path.is_file() and str(path.relative_to(made.path)) not in left:
            path.unlink()
    with pytest.raises(StoreError, match="lies inside the store"):
        require_outside_stores(made.path / "new", "STORE")


@pytest.mark.parametrize("name", ["zarr.json", "creating", "commits/metadata.json"])
def test_a_folder_that_is_no_store_may_hold_one(tmp_path, name):
    if name == "commits/metadata.json":
        (tmp_path / name).mkdir(parents=True)
    else:
        (tmp_path / name).write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    require_outside_stores(tmp_path / "new", "STORE")


def test_a_store_of_another_version_is_one(make_store):
    made = make_store(70)
    document = (made.path / "zarr.json").read_text()
    (made.path / "zarr.json").write_text(
        document.replace('"version": 1', '"version": 99').replace('"version":1', '"version":99')
    )
    with pytest.raises(StoreError, match="lies inside the store"):
        require_outside_stores(made.path / "new", "STORE")


def test_a_folder_above_that_may_not_be_read_is_no_hindrance(tmp_path, monkeypatch):
    def denied(self, names):
        raise PermissionError(13, "Permission denied", str(self.local / names[0]))

    monkeypatch.setattr(LocalFolder, "read_many", denied)
    require_outside_stores(tmp_path / "a/new", "STORE")


def test_keys_of_a_bucket_are_folders_too(make_store, empty_memory):
    make_store(70, place="memory://bucket/a/made.zarr")
    with pytest.raises(
        StoreError, match=r"/new lies inside the store memory://bucket/a/made\.zarr: name another STORE"
    ):
        require_outside_stores("memory://bucket/a/made.zarr/deep/new", "STORE")
    for beside in ("memory://bucket/a/new", "memory://bucket/a/made.zarr", "memory://bucket/a/made.zarr-2/x"):
        require_outside_stores(beside, "STORE")


def test_an_account_that_is_not_let_in_above_may_write_below(monkeypatch):
    status = 403

    def denied(self, names):
        answer = OSError("no")
        answer.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": "AccessDenied"}}
        raise UnreachableStoreError(f"{self} may not be read") from answer

    monkeypatch.setattr(Bucket, "read_many", denied)
    require_outside_stores("memory://bucket/me/new", "STORE")
    status = 503
    with pytest.raises(UnreachableStoreError):
        require_outside_stores("memory://bucket/me/new", "STORE")


def test_merge_refuses_an_out_inside_a_store_it_joins_and_writes_nothing(make_store):
    first, second = make_store(70), make_store(70, name="other.zarr", key_prefix="more ")
    before = names_below(first.path)
    with pytest.raises(StoreError, match=r"joined\.zarr lies inside the store .*made\.zarr: name another OUT"):
        merge_stores([str(first.path), str(second.path)], str(first.path / "joined.zarr"))
    assert names_below(first.path) == before
