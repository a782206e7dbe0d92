"""A click command made of an option dataclass, its errors turned into one line and an exit status."""

import errno
import functools
import json
import math
import os
import re
import select
import signal
import sys
import tempfile
import threading
import traceback
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .notices import notices
from .progress import printable

_NEXT_STEPS = {
    errno.ENOSPC: "make room, then give the same command again",
    errno.EDQUOT: "make room, then give the same command again",
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
    errno.EROFS: "name a place that can be written to",
}
_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}  # control characters that JSON lets stand
_URL = re.compile(r"([a-z][a-z0-9+.-]*)(://|:/(?!/))", re.IGNORECASE)
_NOT_GIVEN = (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)


class FolderPath(click.Path):
    """A folder on this machine, as a `Path`; no URL, which a `Path` would turn into a folder of that name."""

    name = "folder"

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; a usage error where it is a URL, or empty as a shell variable that is not set."""
        text = _named(self, value, param, ctx)
        if _URL.match(text):
            self.fail(
                f"{text} is a URL: it is a folder on this machine; only STORE and IMAGES may be URLs.", param, ctx
            )
        return super().convert(value, param, ctx)


class StorePlace(click.ParamType):
    """A path or URL of a store, as text: a `Path` would make s3:/bucket of s3://bucket."""

    name = "store"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The same text; a usage error where it is empty, a URL that lacks a slash, or gone with this process."""
        text = _named(self, value, param, ctx)
        found = _URL.match(text)
        if found and found[2] != "://":
            rest = text[len(found[0]) :]
            self.fail(f"{text} is neither a path nor a URL: is {found[1]}://{rest} or ./{text} meant?", param, ctx)
        if found and found[1] == "memory":
            self.fail(f"{text} would be gone when this command ends: name a folder or a bucket.", param, ctx)
        return text


def _named(kind: click.ParamType, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
    text = os.fspath(value)
    if not text:
        kind.fail("it is empty: name it (is a shell variable not set?)", param, ctx)
    return str(text)


class Several(click.ParamType):
    """One value of another type, or several with commas between them: a tuple of them."""

    def __init__(self, kind: click.ParamType, *, commas: bool) -> None:
        self._kind, self._commas, self.name = kind, commas, kind.name

    def get_metavar(self, *args: Any, **kwargs: Any) -> str | None:
        """As of the one value."""
        return self._kind.get_metavar(*args, **kwargs)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The values; a usage error names the first that is none."""
        if not isinstance(value, str):
            return (value,)
        if not self._commas:
            return (self._kind.convert(value, param, ctx),)
        parts = [part.strip() for part in value.split(",")]
        if not all(parts):
            self.fail(f"{value!r} holds an empty value.", param, ctx)
        return tuple(self._kind.convert(part, param, ctx) for part in parts)


class GroupedOption(click.Option):
    """An option that stands below a heading in the help."""

    heading: str | None = None


class GroupedCommand(click.Command):
    """A command whose help shows its options below their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those without a heading last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        others: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                heading = getattr(parameter, "heading", None)
                (groups.setdefault(heading, []) if heading else others).append(record)
        for heading, records in [*groups.items(), ("Other", others)]:
            with formatter.section(heading):
                formatter.write_dl(records)


def options_of(cls: type, *, several: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a click command an option for each field of an option dataclass, with the field's default and help.

    Parameters
    ----------
    several
        Whether each option takes several values, with commas or by repetition; `given_values` reads them.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        hints = typing.get_type_hints(cls)
        headings, heading = {}, None
        for spec in fields(cls):
            heading = headings[spec.name] = spec.metadata["heading"] or heading
        for spec in reversed(fields(cls)):
            function = _click_option(spec, hints[spec.name], headings[spec.name], several)(function)
        return function

    return decorate


def given_values(context: click.Context, cls: type) -> dict[str, tuple[Any, ...]]:
    """The values that the user gave of each field of an option dataclass, where its options take several.

    In the order of the command line, each value once.
    """
    return {
        name: tuple(dict.fromkeys(chain.from_iterable(value))) if isinstance(value, tuple) else (value,)
        for name, value in given(context, cls).items()
    }


def given(context: click.Context, cls: type) -> dict[str, Any]:
    """The fields of an option dataclass that the user gave, by name, in the dataclass's types."""
    names = [spec.name for spec in fields(cls)]
    return {
        name: tuple(value) if isinstance(value, (list, tuple)) else value
        for name, value in context.params.items()
        if name in names and context.get_parameter_source(name) not in _NOT_GIVEN
    }


def _click_option(
    spec: "Field[Any]", hint: Any, heading: str | None, several: bool
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    metadata = spec.metadata
    flag = metadata["flag"] or f"--{spec.name.replace('_', '-')}"
    default = spec.default if spec.default is not MISSING else None
    if spec.default_factory is not MISSING:
        default = spec.default_factory()
    plain = _plain_type(hint)
    cls = type("Option", (GroupedOption,), {"heading": heading}) if heading else click.Option
    extra: dict[str, Any] = {"help": metadata["help"], "metavar": metadata["metavar"], "cls": cls}
    if plain is bool:
        return click.option(
            spec.name, f"{flag}/--no-{flag[2:]}" if default else flag, is_flag=True, default=default, **extra
        )
    if typing.get_origin(plain) is tuple:
        kind, extra["multiple"] = typing.get_args(plain)[0], True
        default = default or ()
    else:
        kind = plain
    if metadata["choices"]:
        kind = click.Choice(metadata["choices"])
    elif kind is Path:
        kind = click.Path(path_type=Path)
    if several:
        kind, extra["multiple"] = Several(click.types.convert_type(kind), commas=not metadata["is_text"]), True
        default = () if default is None else (default,)
    return click.option(flag, spec.name, type=kind, default=default, show_default=default not in (None, ()), **extra)


def _plain_type(hint: Any) -> Any:
    """`int` for `int | None`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def edge(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the rooms' errors into one line: exit 2 for wrong usage, 1 for everything else. Adds `--debug`."""

    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(function)
    def wrapper(*args: Any, debug: bool, **kwargs: Any) -> Any:
        try:
            os.getcwd()  # where it is gone, torch's libraries end the process as they load
            with _sigterm_as_interrupt(), notices():
                return function(*args, **kwargs)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except KeyboardInterrupt as interrupt:
            if debug:
                traceback.print_exc()
            raise click.ClickException(str(interrupt) or "stopped by the user.") from None
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _reader_of_stdout_is_gone():
                raise  # click ends the command quietly, as `| head -1` expects
            if debug:
                traceback.print_exc()
            raise _one_line(error) from None

    return wrapper


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does: temporary files and worker processes go, one line is said."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt("stopped by SIGTERM.")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _reader_of_stdout_is_gone() -> bool:
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):  # no stdout, or not one of the system's
        return False


def _one_line(error: Exception) -> click.ClickException:
    from .store.errors import StoreError

    text = printable(" ".join(str(error).split())) or type(error).__name__
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        return click.UsageError(text, click.get_current_context(silent=True))
    if isinstance(error, StoreError):
        return click.ClickException(text)
    if isinstance(error, OSError):
        return click.ClickException(_of_system(error))
    # torch has an error of its own on a GPU and none on the CPU
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError") or "can't allocate memory" in text:
        context = click.get_current_context(silent=True)
        names = [parameter.opts[0] for parameter in context.command.params] if context is not None else []
        sizes = [name for name in ("--batch-size", "--rows-per-chunk", "--block-rows") if name in names]
        advice = f"take a smaller {' or '.join(sizes)}" if sizes else "free some"
        device = ", or another --device" if "--device" in names else ""
        return click.ClickException(f"out of memory: {advice}{device}. ({text[:200]})")
    return click.ClickException(f"this is a bug in thresher: {type(error).__name__}: {text} {_log(error)}")


def _log(error: Exception) -> str:
    """Where the traceback of an error was written to."""
    try:
        handle, path = tempfile.mkstemp(prefix="thresher-", suffix=".log")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{sys.argv}\n")
            traceback.print_exception(error, file=log)
    except OSError:
        return "Its traceback could be written nowhere: --debug shows it."
    return f"The traceback is in {path}"


def _of_system(error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and error.filename is None and not _is_somewhere():
        return "the current directory does not exist any more: go to another."
    name = error.filename if error.filename is None or isinstance(error.filename, str) else os.fsdecode(error.filename)
    text = " ".join((error.strerror or str(error) or type(error).__name__).split()).removesuffix(".")
    if step := _NEXT_STEPS.get(error.errno or 0):
        text = f"{text}: {step}"
    return printable(f"{name}: {text}." if name else f"{text}.")


def _is_somewhere() -> bool:
    try:
        return bool(os.getcwd())
    except OSError:
        return False


def echo(text: str) -> None:
    """Print a result on stdout, whatever bytes the names in it hold."""
    click.echo(printable(text, keep="\n"))


def to_json(value: Any) -> str:
    """A result as one JSON document; numbers that are not finite become null, paths become text.

    A byte that is no UTF-8 becomes the escape by which `os.fsencode` gives it back.
    """
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8").translate(_JSON_ESCAPES)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(item) for name, item in asdict(value).items()}
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
