import pytest
from thresher.analysis.folders import new_folder
from thresher.store.errors import StoreError


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    old, path = tmp_path / ".features.old", tmp_path / "features"
    old.mkdir()
    (old / "value").write_text("what was there")
    with pytest.raises(StoreError, match="--overwrite"), new_folder(path, overwrite=False):
        pass
    assert (path / "value").read_text() == "what was there"
    with pytest.raises(RuntimeError), new_folder(path, overwrite=True):
        raise RuntimeError("the next one fails too")
    assert (path / "value").read_text() == "what was there"
    with new_folder(path, overwrite=True) as folder:
        (folder / "value").write_text("new")
    assert (path / "value").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["features"]
