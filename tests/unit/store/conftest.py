"""A service of buckets for the tests of what lies in them."""

import pytest
from s3_on_loopback import faulty_s3, s3_server


@pytest.fixture(scope="module")
def servers():
    with s3_server() as server, faulty_s3(server) as proxy:
        yield server, proxy


@pytest.fixture
def s3(servers, monkeypatch):
    """The server itself, named in the environment."""
    for name, value in servers[0].environment.items():
        monkeypatch.setenv(name, value)
    return servers[0]


@pytest.fixture
def proxy(servers, monkeypatch):
    """The server behind a proxy without a plan, named in the environment."""
    for name, value in servers[1].environment.items():
        monkeypatch.setenv(name, value)
    servers[1].plan()
    return servers[1]
