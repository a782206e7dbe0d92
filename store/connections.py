"""The sessions of this process with the services that hold buckets, opened on first use and anew after a fork."""

import asyncio
import os
import random
import threading
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from .errors import UnreachableStoreError
from .outage import Outage

IN_FLIGHT = 32
"""Requests of one process at a time: 32 of 2 MB at 50 ms each would be 1.3 GB/s."""

_PACKAGES = {"s3": ("s3fs", "thresher[s3]"), "s3a": ("s3fs", "thresher[s3]"), "http": ("aiohttp", "aiohttp")}
_PACKAGES |= {"https": _PACKAGES["http"], "gs": ("gcsfs", "gcsfs"), "gcs": ("gcsfs", "gcsfs")}
_PACKAGES |= dict.fromkeys(("abfs", "abfss", "az"), ("adlfs", "adlfs"))


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long a request is waited for, and how often it is made again."""

    tries: int = 5
    first_wait_s: float = 0.25
    """Before the second try; each further wait is 4 times as long, so that five tries wait 21 s at most."""
    growth: float = 4.0
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 20.0
    """Without a byte."""
    try_timeout_s: float = 300.0
    """Of one try from its beginning to its end: it also ends answers that trickle."""

    def wait_s(self, n_failed: int) -> float:
        """Seconds to wait after `n_failed` tries: half of it certain, half drawn, so that many clients part."""
        return self.first_wait_s * self.growth ** (n_failed - 1) * random.uniform(0.5, 1.0)


@dataclass(frozen=True)
class Connection:
    """A filesystem of fsspec with its session, and the requests that it may have under way."""

    filesystem: Any
    loop: asyncio.AbstractEventLoop
    slots: asyncio.Semaphore
    outage: Outage


_connections: dict[Any, Connection] = {}
_connections_mutex = threading.Lock()
_of_parents: list[Connection] = []


def close_connections() -> None:
    """Close the sessions of this process. The next request opens a new one."""
    with _connections_mutex:
        _connections.clear()  # fsspec closes a filesystem's session when the filesystem goes


def connection(scheme: str, url: str, retries: RetryPolicy) -> Connection:
    """The process's connection to the service of a URL, under the credentials that the environment names now."""
    import fsspec.asyn

    cls = filesystem_class(scheme)
    of_url = cls._get_kwargs_from_urls(url)  # the host of hdfs, sftp, ...; nothing for buckets
    settings = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))}
    key = (scheme, tuple(sorted(of_url.items())), retries, tuple(sorted(settings.items())))
    with _connections_mutex:
        if key not in _connections:
            loop = fsspec.asyn.get_loop()
            options = _filesystem_options(scheme, retries) | of_url | {"skip_instance_cache": True}
            try:
                filesystem = cls(**options)
            except OSError as error:  # some connect at once: ftp, sftp, smb
                raise UnreachableStoreError(f"{url} cannot be reached: {error}. Check its address.") from error
            filesystem.retries = 1  # of s3fs, whose own would multiply with those here
            if not filesystem.async_impl:
                from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

                filesystem = AsyncFileSystemWrapper(filesystem, asynchronous=False)
            _connections[key] = Connection(filesystem, loop, asyncio.Semaphore(IN_FLIGHT), Outage())
        return _connections[key]


def _filesystem_options(scheme: str, retries: RetryPolicy) -> dict[str, Any]:
    """What a filesystem is made with; what the user's configuration of fsspec says goes before."""
    from fsspec.config import conf

    options: dict[str, Any] = {"use_listings_cache": False}
    configured = conf.get(scheme, {})
    if scheme in ("s3", "s3a"):
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
            if (endpoint := os.environ.get(name)) and not endpoint.startswith(("http://", "https://")):
                raise ValueError(f"{name} is {endpoint!r}: it begins with http:// or https://")
        config = {
            "connect_timeout": retries.connect_timeout_s,
            "read_timeout": retries.read_timeout_s,
            "max_pool_connections": IN_FLIGHT,
            "retries": {"total_max_attempts": 1},  # of botocore, whose own would multiply with those here
        }
        options["config_kwargs"] = config | configured.get("config_kwargs", {})
        options["max_concurrency"] = 1  # more would ask for an object's size before each read
    if scheme in ("http", "https"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(sock_connect=retries.connect_timeout_s, sock_read=retries.read_timeout_s)
        options["client_kwargs"] = {"timeout": timeout} | configured.get("client_kwargs", {})
    return options


def checked_scheme(url: str) -> str:
    """The scheme of a URL; `ValueError` where it may not be used."""
    scheme, _, rest = url.partition("://")
    if "::" in url:
        raise ValueError("a store's URL names one place: chained URLs, with ::, are not taken")
    if "@" in rest.partition("/")[0]:
        raise ValueError(
            f"the {scheme}:// URL carries credentials, which would end up in logs and in what is written: leave them "
            "out, and give them in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or a profile"
        )
    if "?" in rest:
        raise ValueError(f"a store's URL has no query: leave out what follows ? in {url.partition('?')[0]}?...")
    if not rest.strip("/") or (rest.startswith("/") and scheme in _PACKAGES):
        raise ValueError(f"{url!r} names no bucket: give {scheme}://bucket/key")
    filesystem_class(scheme)
    return scheme


def filesystem_class(scheme: str) -> Any:
    """The class of fsspec's filesystem for a scheme; `ValueError` where there is none, or its package is missing."""
    from fsspec import get_filesystem_class

    package, to_install = _PACKAGES.get(scheme, ("", ""))
    try:
        if package and find_spec(package) is None:
            raise ImportError(package)
        return get_filesystem_class(scheme)
    except ImportError as error:
        install = f"pip install '{to_install}'" if package else str(error)
        raise ValueError(f"{scheme}:// needs {package or 'a package that is not installed'}: {install}") from None
    except ValueError:
        raise ValueError(
            f"{scheme}:// is not a scheme that fsspec knows: give a path, or a URL such as s3://bucket/key"
        ) from None


def _after_fork() -> None:
    """A child cannot use its parent's sockets; to close them would disturb the parent, so they are kept untouched."""
    global _connections_mutex
    _connections_mutex = threading.Lock()
    _of_parents.extend(_connections.values())
    _connections.clear()


os.register_at_fork(after_in_child=_after_fork)
