"""A run whose store lies in a bucket: its pages have pictures, names and similar images as those of a folder."""

import json
import shutil

import pytest
from s3_on_loopback import BUCKET, s3_server
from starlette.testclient import TestClient
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.several import Explorer
from thresher.store.connections import RetryPolicy
from thresher.store.objects import LocalFolder, open_objects

URL = f"s3://{BUCKET}/pictures/store.zarr"


@pytest.fixture(scope="module")
def clients(made, tmp_path_factory):
    """Of the run with its store in a folder, and of its copy with it in a bucket alone; and the server's end."""
    copy = tmp_path_factory.mktemp("of_bucket") / "run"
    shutil.copytree(made.path, copy)
    summary = json.loads((copy / "stats.json").read_text())
    (copy / "stats.json").write_text(json.dumps(summary | {"store": URL}))
    config = json.loads((copy / "config.json").read_text())
    assert str(made.store_path) in json.dumps(config), "the run knows its store"
    (copy / "config.json").write_text(json.dumps(config).replace(str(made.store_path), "/nowhere/store.zarr"))
    with pytest.MonkeyPatch.context() as patch, s3_server() as server:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        here = LocalFolder(made.store_path)
        open_objects(URL).write_all({name: [here.read(name)] for name, _ in here.walk()})
        explorers = Explorer([made.path]), Explorer([copy])
        yield [TestClient(make_app(each), base_url="http://127.0.0.1") for each in explorers]


def test_the_store_is_reached(clients):
    answer = clients[1].get("/")
    assert answer.status_code == 200
    assert "out of reach" not in answer.text


@pytest.mark.parametrize(
    "address",
    ["/t/0", "/t/77", "/i/3.json", "/i/77.json", "/i/3/similar.json", "/c.json", "/features.json?q=class", "/f/0.json"],
)
def test_an_address_answers_as_with_the_store_in_a_folder(clients, address):
    of_folder, of_bucket = (client.get(address) for client in clients)
    assert of_folder.status_code == of_bucket.status_code == 200
    assert of_folder.content == of_bucket.content


def test_pictures_are_pictures(clients):
    assert clients[1].get("/t/5").content[8:12] == b"WEBP"


def test_a_picture_without_a_source_is_its_thumbnail(clients):
    assert clients[1].get("/picture/5").content == clients[1].get("/t/5").content


def test_a_bucket_that_is_gone_leaves_the_pages_that_need_no_store(made, tmp_path, monkeypatch):
    copy = tmp_path / "run"
    shutil.copytree(made.path, copy)
    for file in ("stats.json", "config.json"):
        text = (copy / file).read_text().replace(str(made.store_path), "s3://no-such-bucket/store.zarr")
        (copy / file).write_text(text)
    monkeypatch.setattr("thresher.store.bucket.RetryPolicy", lambda: RetryPolicy(tries=1, connect_timeout_s=1.0))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    client = TestClient(make_app(Explorer([copy])), base_url="http://127.0.0.1")
    assert "out of reach" in client.get("/").text
    answer = client.get("/t/0")
    assert answer.status_code == 503
    assert "is not there any more" in answer.json()["error"]
