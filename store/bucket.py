"""Objects in a bucket, or anywhere else that fsspec reaches by a URL.

A request that fails in passing is made again a few times, with growing waits. Requests run side by side on fsspec's own
event loop, a thread of each process.

What a bucket gives: an object appears whole by one PUT, or not at all, and a listing shows all that was written before.
What it does not give is a lock: that one harvest at a time writes a store is up to the user there.
"""
# ruff: noqa: D102  (what overrides an abstract method does what its docstring says)

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from .bucket_errors import answer_of, delay, exhaustion, is_of_service, is_transient, refusal, silence
from .connections import IN_FLIGHT, RetryPolicy, checked_scheme, connection, filesystem_class
from .errors import StoreError
from .objects import Lock, Objects
from .outage import PATIENCE_S, Outage

_T = TypeVar("_T")

_DELETED_AT_ONCE = 1000  # the most that S3 takes in one request
_ONE_PUT = 5 << 30  # bytes; S3 takes no larger object in one request

# An object appears whole under its name when it is written here. Elsewhere (sftp, ftp, webhdfs, ...) a reader may see
# the first half of it.
_ATOMIC = frozenset(("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "memory"))


class Bucket(Objects):
    """Objects below a URL such as `s3://bucket/key`.

    Parameters
    ----------
    url
        Of any scheme that fsspec knows. Credentials come from where the scheme's own tools take them (for S3: `AWS_*`,
        profiles, instance roles; `AWS_ENDPOINT_URL` for another service) or from fsspec's configuration, never from
        the URL.
    retries
        How often, and how long.

    Raises
    ------
    ValueError
        When the URL carries credentials or a query, or its scheme is not known or needs a package that is missing.
    """

    def __init__(self, url: str, retries: RetryPolicy | None = None) -> None:
        self._scheme = checked_scheme(url)
        self._is_s3 = self._scheme in ("s3", "s3a")
        self.url = url
        self.local = None
        self._retries = retries or RetryPolicy()
        self._root = str(filesystem_class(self._scheme)._strip_protocol(url)).rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "retries": self._retries}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"], state["retries"])  # type: ignore[misc]

    def read(self, name: str) -> bytes:
        return self._run(lambda: self._read(name))

    def read_many(self, names: Sequence[str]) -> list[bytes | None]:
        async def found(name: str) -> bytes | None:
            try:
                return await self._read(name)
            except FileNotFoundError:
                return None

        return self._run(lambda: _side_by_side(found, names))

    def exists(self, name: str = "") -> bool:
        return self._run(lambda: self._exists(name))

    def write_all(self, files: Mapping[str, Sequence[bytes | memoryview]]) -> None:
        self._require_writable()
        whole = {"chunksize": _ONE_PUT} if self._is_s3 else {}

        async def write(name: str) -> None:
            parts = files[name]
            data = bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
            await self._request("written", name, lambda fs: fs._pipe_file(self._path(name), data, **whole))

        self._run(lambda: _side_by_side(write, list(files)))

    def names(self, folder: str = "") -> set[str]:
        return {path.rpartition("/")[2] for path, _ in self._run(lambda: self._list(folder, deep=False))}

    def walk(self, folder: str = "") -> Iterator[tuple[str, int]]:
        at = len(self._root) + 1
        for path, n_bytes in self._run(lambda: self._list(folder, deep=True)):
            yield path[at:], n_bytes

    def delete(self, names: Iterable[str]) -> None:
        self._require_writable()
        if self._is_s3:
            names = list(names)
            batches = [names[i : i + _DELETED_AT_ONCE] for i in range(0, len(names), _DELETED_AT_ONCE)]
            self._run(lambda: _side_by_side(self._delete_batch, batches))
        else:
            self._run(lambda: _side_by_side(self._delete_one, list(names)))

    def delete_all(self, keep: Collection[str] = ()) -> None:
        self.delete([name for name, _ in self.walk() if name.partition("/")[0] not in keep])

    def child(self, name: str) -> "Bucket":
        return Bucket(f"{self.url.rstrip('/')}/{name}", self._retries)

    def lock(self) -> Lock:
        """No lock: a bucket has none. Two harvests into one store write the same bytes twice, and nothing else."""
        return _NoLock()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _where(self, name: str) -> str:
        return f"{self.url.rstrip('/')}/{name}" if name else self.url

    def _require_writable(self) -> None:
        if self._scheme in ("http", "https"):
            raise StoreError(f"{self.url} can only be read: {self._scheme} stores are written elsewhere and served.")
        if self._scheme not in _ATOMIC:
            raise StoreError(
                f"{self.url} can only be read: a file that is written over {self._scheme} may be seen half-written. "
                "Write to a local folder or a bucket and copy the finished store there."
            )

    def _run(self, start: Callable[[], Awaitable[_T]]) -> _T:
        """Wait for a coroutine on fsspec's loop; an interrupt here ends it there."""

        async def run() -> _T:
            return await start()

        loop = connection(self._scheme, self.url, self._retries).loop
        future = asyncio.run_coroutine_threadsafe(run(), loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _request(self, verb: str, name: str, call: Callable[[Any], Awaitable[_T]]) -> _T:
        """Make one request, again where it fails in passing.

        Parameters
        ----------
        verb
            `read`, `written`, `listed` or `deleted`.
        name
            Of the object.
        call
            Makes the request of a filesystem.

        Raises
        ------
        FileNotFoundError
            When the object is not there.
        UnreachableStoreError
            When the service refuses, or each try fails.
        """
        connected = connection(self._scheme, self.url, self._retries)
        outage, tries = connected.outage, self._retries.tries
        started_s = time.monotonic()
        n_failed = 0
        while True:
            try:
                async with connected.slots, asyncio.timeout(self._retries.try_timeout_s):
                    with self._telling_of_silence(outage, verb, name, n_failed):
                        result = await call(connected.filesystem)
                    outage.answered()
                    return result
            except Exception as error:
                n_failed += 1
                if not is_transient(error):
                    outage.answered()
                    self._raise_final(error, verb, name)
                if n_failed == tries:
                    seconds = time.monotonic() - started_s
                    raise exhaustion(error, self._where(name), verb, n_failed, seconds) from error
                wait_s = self._retries.wait_s(n_failed)
                outage.failed(started_s, wait_s, delay(error, self._where(name), verb, n_failed + 1, tries, wait_s))
            await asyncio.sleep(wait_s)

    @contextmanager
    def _telling_of_silence(self, outage: Outage, verb: str, name: str, n_failed: int) -> Iterator[None]:
        """Say when a service that has never answered lets the first try wait; what is wrong with others is told."""
        if outage.has_answered or n_failed:
            yield
            return
        line = silence(self._where(name), verb, self._retries.tries, PATIENCE_S)
        timer = asyncio.get_running_loop().call_later(PATIENCE_S, outage.tell, line)
        try:
            yield
        finally:
            timer.cancel()

    def _raise_final(self, error: Exception, verb: str, name: str) -> NoReturn:
        if isinstance(error, FileNotFoundError) and answer_of(error)[1] != "NoSuchBucket":
            raise FileNotFoundError(errno.ENOENT, "no such object", self._where(name)) from error
        if not is_of_service(error):
            raise error
        raise refusal(error, self._where(name), verb) from error

    async def _read(self, name: str) -> bytes:
        return bytes(await self._request("read", name, lambda fs: fs._cat_file(self._path(name))))

    async def _exists(self, name: str) -> bool:
        try:
            if self._is_s3:
                return await self._exists_in_s3(name)
            await self._request("read", name, lambda fs: fs._info(self._path(name)))
        except FileNotFoundError:
            return False
        return True

    async def _exists_in_s3(self, name: str) -> bool:
        """Asked in two requests, each tried again by itself: for the object, then for one below that name."""
        bucket, _, key = self._path(name).partition("/")
        if key:
            try:
                await self._request("read", name, lambda fs: fs._call_s3("head_object", Bucket=bucket, Key=key))
                return True
            except FileNotFoundError:
                pass
        below = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", "MaxKeys": 1}
        page = await self._request("read", name, lambda fs: fs._call_s3("list_objects_v2", **below))
        return bool(page.get("Contents"))

    async def _list(self, folder: str, *, deep: bool) -> list[tuple[str, int]]:
        """Path and size of all objects below a folder, or of all names directly in it."""
        try:
            if self._is_s3:
                return await self._list_s3(folder, deep=deep)
            path = self._path(folder)
            if not deep:
                infos = await self._request("listed", folder, lambda fs: fs._ls(path, detail=True))
            else:
                # The walk of fsspec, which http has, would otherwise leave out folders that it fails to list.
                strict = {"on_error": "raise"} if self._scheme in ("http", "https") else {}
                tree = await self._request("listed", folder, lambda fs: fs._find(path, detail=True, **strict))
                infos = list(tree.values())
        except FileNotFoundError:
            return []
        found = [(str(info["name"]).rstrip("/"), info) for info in infos]
        found = [(name, info) for name, info in found if name != path and "?" not in name]
        if deep:
            sizes = await _side_by_side(self._size, found)
            return [(name, size) for (name, _), size in zip(found, sizes, strict=True)]
        return [(name, 0) for name, _ in found]

    async def _size(self, found: tuple[str, dict[str, Any]]) -> int:
        path, info = found
        if info.get("size") is None:  # listings over http have none
            info = await self._request("read", path[len(self._root) + 1 :], lambda fs: fs._info(path))
        return int(info["size"])

    async def _list_s3(self, folder: str, *, deep: bool) -> list[tuple[str, int]]:
        """Page by page, so that a page that fails is asked for again and not all before it."""
        bucket, _, key = self._path(folder).partition("/")
        wanted = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", "Delimiter": "" if deep else "/"}
        found: list[tuple[str, int]] = []
        while True:
            page = await self._request("listed", folder, lambda fs: fs._call_s3("list_objects_v2", **wanted))
            objects = [(entry["Key"], entry["Size"]) for entry in page.get("Contents", [])]
            objects += [(entry["Prefix"].rstrip("/"), 0) for entry in page.get("CommonPrefixes", [])]
            # Some tools make empty objects whose names end in a slash, to show folders.
            found += [(f"{bucket}/{name}", size) for name, size in objects if not name.endswith("/")]
            if not page.get("IsTruncated"):
                return found
            wanted["ContinuationToken"] = page["NextContinuationToken"]

    async def _delete_one(self, name: str) -> None:
        try:
            await self._request("deleted", name, lambda fs: fs._rm_file(self._path(name)))
        except FileNotFoundError:
            return

    async def _delete_batch(self, names: Sequence[str]) -> None:
        bucket = self._root.partition("/")[0]
        keys = [{"Key": self._path(name).partition("/")[2]} for name in names]
        answer = await self._request(
            "deleted",
            names[0],
            lambda fs: fs._call_s3("delete_objects", Bucket=bucket, Delete={"Objects": keys, "Quiet": True}),
        )
        for refused in answer.get("Errors", []):
            raise StoreError(
                f"{self._scheme}://{bucket}/{refused['Key']} could not be deleted ({refused['Code']}): "
                "give the account the permission to, then give the same command again."
            )


async def _side_by_side(call: Callable[[Any], Awaitable[_T]], arguments: Sequence[Any]) -> list[_T]:
    """The results of a coroutine for each argument, in their order; the first error ends all."""
    results: list[Any] = [None] * len(arguments)
    numbers = iter(range(len(arguments)))

    async def work() -> None:
        for number in numbers:
            results[number] = await call(arguments[number])

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(IN_FLIGHT, len(arguments))):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors.exceptions[0].__cause__
    return results


class _NoLock:
    def close(self) -> None:
        return
