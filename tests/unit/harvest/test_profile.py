import time

import pytest
from listener import Listener
from thresher.harvest import batches
from thresher.harvest.options import HarvestOptions
from thresher.harvest.profile import DECODE, TOWER, Profile, format_stages
from thresher.harvest.ranks import Ranks
from thresher.harvest.run import harvest
from thresher.store.writer import WindowWriter


@pytest.fixture
def options(tiny_model):
    def make(**changes):
        defaults = {"model": str(tiny_model), "layer": (1,), "workers": 0, "batch_size": 3, "rows_per_chunk": 5}
        return HarvestOptions(**(defaults | {"device": "cpu"} | changes))

    return make


@pytest.fixture
def folder(tmp_path, pictures):
    return pictures.class_folders(tmp_path / "set", n_per_class=4)


def slow(monkeypatch, where, name, seconds):
    """Have each call take so much longer; the seconds that each took in the end."""
    real, taken = getattr(where, name), []

    def slowly(*arguments):
        start = time.perf_counter()
        time.sleep(seconds)
        result = real(*arguments)
        taken.append(time.perf_counter() - start)
        return result

    monkeypatch.setattr(where, name, slowly)
    return taken


def test_the_stage_that_is_slow_has_the_time(options, folder, tmp_path, monkeypatch):
    decoding = slow(monkeypatch, batches, "decode_image", 0.05)
    beginning = slow(monkeypatch, WindowWriter, "begin", 0.0)
    writing = slow(monkeypatch, WindowWriter, "write", 0.1)
    listener = Listener()
    result = harvest(options(profile=True), folder, tmp_path / "s.zarr", listener)
    seconds = {stage.stage: stage.seconds for stage in result.profile}
    assert len(writing) == 3
    assert 0.6 <= seconds["decode"] < sum(decoding[-12:]) + 0.29  # of 12 images
    # The last write at least is waited for; at least one of the others hides behind decoding.
    assert 0.1 <= seconds["commit"] < sum(writing) + sum(beginning) - 0.1
    assert sum(stage.share for stage in result.profile) == pytest.approx(1)
    assert sum(seconds.values()) == pytest.approx(result.seconds, rel=0.5)
    table = listener.said[-6:]
    assert table == format_stages(result.profile)
    assert table[0].split() == ["stage", "share", "seconds"]
    assert [line.split()[0] for line in table[1:]] == ["decode", "tower", "gather", "commit", "other"]


def test_nothing_is_timed_unless_asked_for(options, folder, tmp_path):
    listener = Listener()
    assert harvest(options(), folder, tmp_path / "s.zarr", listener).profile is None
    assert not any(line.startswith("stage") for line in listener.said)
    off = Profile(is_on=False)
    assert off.timed(DECODE) is off.timed(TOWER)  # one block that does nothing, for all


def test_the_processes_times_are_averaged():
    class Two(Ranks):
        n_ranks = 2

    ranks = Two()
    for decode_s, loop_s in ((1.0, 4.0), (2.0, 6.0)):
        profile = Profile(is_on=True)
        profile._seconds[DECODE] = decode_s
        profile.publish(loop_s, ranks)
    stages = {stage.stage: (stage.seconds, stage.share) for stage in profile.stages(ranks)}
    assert stages["decode"] == (1.5, 0.3)
    assert stages["other"] == (3.5, 0.7)
    assert stages["tower"] == (0.0, 0.0)
