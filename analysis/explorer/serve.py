"""Serves the explorer on a port of this machine until it is stopped."""

import socket
import threading
import webbrowser
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...progress import Reporter
from .app import make_app
from .options import ExploreOptions
from .runs import Explorer
from .security import OWN_NAMES

if TYPE_CHECKING:
    from uvicorn import Server

_PORTS_TRIED = 20


def explore(
    runs: Sequence[str | Path],
    options: ExploreOptions | None = None,
    *,
    opens_browser: bool = True,
    reporter: Reporter | None = None,
) -> None:
    """Serve the explorer of some runs until interrupted.

    Raises
    ------
    StoreError
        When a run has no statistics.
    ValueError
        When the address is not this machine's own and no name for browsers is given.
    OSError
        When no port can be had.
    """
    options, reporter = options or ExploreOptions(), reporter or Reporter()
    if options.host not in OWN_NAMES and not options.allow_host:
        raise ValueError(
            f"--host {options.host} shows this run to other machines: say how they reach it with --allow-host NAME."
        )
    explorer = Explorer(runs)
    app = make_app(explorer, names=options.allow_host)
    for run in explorer.runs:
        for note in run.notes:
            reporter.warn(note)
        threading.Thread(target=run.preload, name=f"preload-{run.name}", daemon=True).start()
    listening = listen(options)
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{listening.getsockname()[1]}/"
    reporter.say(f"{', '.join(run.name for run in explorer.runs)}: open {address} (Ctrl-C ends it)")
    if opens_browser:
        threading.Timer(0.5, webbrowser.open, (address,)).start()
    try:
        server(app).run(sockets=[listening])
    finally:
        listening.close()


def server(app: Callable[..., Awaitable[None]]) -> "Server":
    """What answers with `app` at the sockets given to its `run`."""
    from uvicorn import Config, Server

    return Server(Config(app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=30))


def listen(options: ExploreOptions) -> socket.socket:
    """A listening socket on the port, or on the next that is free."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    last: OSError | None = None
    for port in range(options.port, min(options.port + _PORTS_TRIED, 65535) + 1):
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((options.host, port))
            listening.listen(128)
        except OSError as error:
            listening.close()
            last = error
        else:
            return listening
    assert last is not None
    raise OSError(last.errno, f"no port from {options.port} on can be had at {options.host} ({last.strerror})")
