"""Fetches open_clip's weights from the Hugging Face hub, and fails at once and clearly where there is no network."""

import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def download(model: str, pretrained: str, tag: dict[str, Any]) -> Path:
    """The file of a tag's weights, fetched unless it is cached.

    Raises
    ------
    ConnectionError
        When it cannot be fetched, with how to bring it by hand.
    """
    import open_clip

    try:
        repo, _, file_name = tag.get("hf_hub", "").rpartition("/")
        require_hub(repo, file_name)
        with quiet_logging():
            return Path(open_clip.download_pretrained(tag))
    except Exception as error:  # hub and HTTP clients each raise their own types
        repo = tag.get("hf_hub", "").strip("/")
        source = f"https://huggingface.co/{repo}" if repo else tag.get("url", "its page")
        raise ConnectionError(
            f"the weights {pretrained} of {model} could not be fetched ({first_line(error)}). On a box without "
            f"network, download them elsewhere from {source} and pass the file's path as --pretrained."
        ) from error


def require_hub(repo: str, file_name: str) -> None:
    """Fail at once where the hub cannot be reached and nothing is cached: its own client tries for 45 seconds.

    Raises
    ------
    OSError
        As the network gives it.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    names = [file_name] if file_name else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    if not repo or any(isinstance(try_to_load_from_cache(repo, name), str) for name in names):
        return
    if urllib.request.getproxies() or constants.HF_HUB_OFFLINE:
        return  # a proxy resolves names itself; offline mode fails at once by itself
    url = urllib.parse.urlsplit(constants.ENDPOINT)
    assert url.hostname is not None
    socket.create_connection((url.hostname, url.port or 443), timeout=5).close()


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Keep open_clip from writing to, and from configuring, the root logger, and hub clients from reporting retries."""
    root = logging.getLogger()
    handler = logging.NullHandler()
    before = root.manager.disable
    root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
