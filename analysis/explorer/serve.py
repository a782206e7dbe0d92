"""Serves the explorer on a port of this machine until it is stopped."""

import atexit
import errno
import gc
import logging
import socket
import threading
import webbrowser
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ...progress import Reporter
from ...store.errors import StoreError
from .app import make_app
from .options import ExploreOptions
from .runs import ExploredRun
from .security import OWN_NAMES
from .several import Explorer
from .threads import end_without_them

if TYPE_CHECKING:
    from uvicorn import Server

_PORTS_TRIED = 20


def explore(
    runs: Sequence[str | Path],
    options: ExploreOptions | None = None,
    *,
    opens_browser: bool = True,
    announce: Callable[[str], object] = print,
    reporter: Reporter | None = None,
) -> None:
    """Serve the explorer of some runs until interrupted.

    Parameters
    ----------
    announce
        Told the line with the address.

    Raises
    ------
    StoreError
        When a run has no statistics, or what serves it is not installed.
    ValueError
        When the address is not this machine's own and no name for browsers is given.
    OSError
        When no port can be had.
    """
    require_extra()
    options, reporter = options or ExploreOptions(), reporter or Reporter()
    if options.host not in OWN_NAMES and not options.allow_host:
        raise ValueError(
            f"--host {options.host} shows this run to other machines: say how they reach it with --allow-host NAME."
        )
    listening, is_over = listen(options), threading.Event()
    atexit.register(end_without_them)  # the first is the last to be called
    try:
        explorer = Explorer(runs)
        app = make_app(explorer, names=options.allow_host)
        for run in explorer.runs:
            run.device = options.device
            for note in filter(None, (*run.notes, run.annotations.problem)):
                reporter.warn(note)
        threading.Thread(target=_preload, args=(explorer.runs, is_over), name="preload", daemon=True).start()
        host = options.host if options.host in OWN_NAMES else options.allow_host[0]
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"
        announce(f"{', '.join(run.name for run in explorer.runs)}: open {address} (Ctrl-C ends it)")
        if opens_browser:
            opening = threading.Timer(0.5, webbrowser.open, (address,))
            opening.daemon = True
            opening.start()
        server(app).run(sockets=[listening])
    finally:
        is_over.set()
        gc.unfreeze()
        listening.close()


def _preload(runs: Sequence[ExploredRun], is_over: threading.Event) -> None:
    """Read what pages need into memory."""
    for run in runs:
        run.preload()
    if not is_over.is_set():
        gc.freeze()  # these hundred thousands of objects stay: to look through them held every visitor up for 150 ms


def require_extra() -> None:
    """Raise `StoreError` where the packages that serve pages are not installed."""
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise StoreError(f"explore needs {' and '.join(missing)}: pip install 'thresher[explorer]'.")


def server(app: Callable[..., Awaitable[None]]) -> "Server":
    """What answers with `app` at the sockets given to its `run`."""
    from uvicorn import Config, Server

    config = Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # no one's word for whom a request is from
        lifespan="off",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=1,  # s, for what is being answered when it is stopped
    )
    logging.getLogger("uvicorn.error").addFilter(_is_told)
    return Server(config)


def _is_told(record: logging.LogRecord) -> bool:
    """Whether a user is told a line of uvicorn's: not that a stop cut a visitor off."""
    is_cut_off = record.exc_info is not None and isinstance(record.exc_info[1], CancelledError)
    return not is_cut_off and not str(record.msg).startswith("Cancel %s running task(s)")


def listen(options: ExploreOptions) -> socket.socket:
    """A listening socket on the port, or on the next that is free."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    last: OSError | None = None
    for port in range(options.port, min(options.port + _PORTS_TRIED, 65535) + 1):
        # the protocol is named: only then asyncio sends at once, where an answer would wait 40 ms for the other side
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((options.host, port))
            listening.listen(128)
        except OSError as error:
            listening.close()
            last = error
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                break  # no other port helps
        else:
            return listening
    assert last is not None
    raise OSError(last.errno, f"no port from {options.port} on can be had at {options.host} ({last.strerror})")
