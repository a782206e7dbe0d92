"""Files that someone else may have made, read without running anything in them, and checked.

`StoreError` names the file and what is wrong with it.
"""

import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...store.errors import DamagedStoreError, StoreError

MAX_JSON_BYTES = 16 << 20
_MAX_WIDTH = 1 << 31  # of a dimension: beyond it, a file is not an SAE's


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of at most `MAX_JSON_BYTES`."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise StoreError(f"{path} is not there, or is no file.") from None
    return parse_json(text, path)


def parse_json(text: bytes, path: Path) -> dict[str, Any]:
    """The object that bytes of a file hold."""
    if len(text) > MAX_JSON_BYTES:
        raise StoreError(f"{path} holds more than {MAX_JSON_BYTES >> 20} MiB of JSON: it is not an SAE's.")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedStoreError(f"{path} is not JSON ({error}): it is damaged or another format.") from error
    if not isinstance(record, dict):
        raise DamagedStoreError(f"{path} holds no JSON object: it is damaged or another format.")
    return record


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file."""
    if not path.is_file():
        raise StoreError(f"{path} is not there, or is no file.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise DamagedStoreError(
            f"{path} cannot be read as safetensors ({error}): it is damaged or another format."
        ) from error


class Record:
    """What an object of a class in a pickle becomes: its attributes, none of its code."""

    class_name = ""

    def __setstate__(self, state: object) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


def read_pt(source: Path, *, offset: int = 0, as_records: Collection[str] = ()) -> Any:
    """What `torch.save` wrote, from `offset` bytes on: tensors and plain data, and nothing else.

    Parameters
    ----------
    source
        The file.
    offset
        Bytes before it.
    as_records
        Classes, by their full names, whose objects are read as `Record`. Any other class or function that the file
        names is refused by its name, and none is looked up.
    """
    if not source.is_file():
        raise StoreError(f"{source} is not there, or is no file.")
    with open(source, "rb") as file:
        file.seek(offset)
        content = file.read()
    _refuse_inflation(source, content)
    allowed: list[Any] = [(type("Record", (Record,), {"class_name": name}), name) for name in as_records]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd files, which are checked after
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(r"[Uu]nsupported class ([\w.]+)", str(error))
        if named:
            raise StoreError(f"{source} wants to load {named[1]}, which is not weights: it is not opened.") from error
        raise _not_torch(source, "its pickle holds more than weights, or is cut short") from error
    except (EOFError, KeyError, IndexError, AttributeError, RuntimeError, ValueError, TypeError, OSError) as error:
        reason = str(error).split(".")[0][:120] or type(error).__name__
        raise _not_torch(source, reason) from error


def _not_torch(path: Path, reason: str) -> StoreError:
    return DamagedStoreError(f"{path} cannot be read as torch weights ({reason}): it is damaged or another format.")


def _refuse_inflation(path: Path, content: bytes) -> None:
    """Refuse an archive whose members are larger than itself: torch stores them as they are."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return  # older files are no archives; torch says what is wrong with others
    if size > len(content):
        raise StoreError(f"{path} unpacks to {size:,} bytes from {len(content):,}: torch does not write such files.")


def names_in_pickle(path: Path, *names: str) -> bool:
    """Whether the pickle of a torch file names one of some modules: what it is, without opening it."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next(member for member in archive.infolist() if member.filename.endswith("data.pkl"))
            with archive.open(pickled) as file:
                text = file.read(MAX_JSON_BYTES)
    except (zipfile.BadZipFile, StopIteration, OSError, ValueError, NotImplementedError, RuntimeError):
        return False
    return any(name.encode() in text for name in names)


class Tensors:
    """Weights of a file by name, each checked as it is taken: type, shape, finite numbers.

    Parameters
    ----------
    path
        For errors.
    found
        What the file holds.
    """

    def __init__(self, path: Path, found: object) -> None:
        if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
            raise StoreError(f"{path} holds no weights by name: it is damaged or another format.")
        self.path = path
        self._found: dict[str, Any] = dict(found)
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def take(self, name: str, *shape: int | None) -> Tensor:
        """A tensor of finite numbers, as float64; None in `shape` fits any length."""
        self._taken.add(name)
        tensor = self._found.get(name)
        if not isinstance(tensor, Tensor):
            held = ", ".join(sorted(self._found)[:12]) or "nothing"
            raise StoreError(f"{self.path} holds no tensor {name}; it holds {held}.")
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise StoreError(f"{self.path}: {name} is {_type(tensor)}, where weights are floating-point numbers.")
        self._require_shape(name, tensor, shape)
        # What a file calls a tensor may be one number repeated: its bytes must be in the file.
        if tensor.numel() > tensor.untyped_storage().nbytes() // tensor.element_size():
            raise StoreError(f"{self.path}: {name} of shape {tuple(tensor.shape)} is larger than what the file holds.")
        wide = tensor.double()
        if not torch.isfinite(wide).all():
            n = int((~torch.isfinite(wide)).sum())
            raise StoreError(f"{self.path}: {name} holds {n:,} numbers that are not finite (NaN or infinite).")
        return wide

    def integers(self, name: str) -> list[int]:
        """Whole numbers of a tensor of at most one dimension."""
        self._taken.add(name)
        tensor = self._found.get(name)
        if not isinstance(tensor, Tensor) or tensor.ndim > 1 or tensor.is_floating_point() or tensor.is_complex():
            raise StoreError(f"{self.path}: {name} is not whole numbers.")
        return [int(value) for value in tensor.flatten().tolist()]

    def forget(self, *names: str) -> None:
        """Leave out tensors that change no activation."""
        self._taken.update(names)

    def require_all_taken(self) -> None:
        """Refuse what was not understood: a tensor left out would change what the SAE computes."""
        left = sorted(set(self._found) - self._taken)
        if left:
            raise StoreError(f"{self.path} holds {', '.join(left)}, which an SAE of this kind does not have.")

    def _require_shape(self, name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
        fits = tensor.ndim == len(shape) and all(
            size in (None, here) and 0 < here < _MAX_WIDTH for size, here in zip(shape, tensor.shape, strict=False)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise StoreError(f"{self.path}: {name} has shape {tuple(tensor.shape)}, and ({wanted}) is needed.")


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def require_word(config: Mapping[str, Any], name: str, allowed: Collection[Any], path: Path, default: Any) -> Any:
    """A field of a configuration that must be one of some values; `default` where there is none."""
    value = config.get(name, default)
    if value not in allowed:
        shown = ", ".join(str(each) for each in allowed)
        raise StoreError(f"{path}: {name} is {value!r}, and thresher reads {shown}.")
    return value


def require_k(value: object, path: Path) -> int:
    """The k of a configuration; `StoreError` where it is no count."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise StoreError(f"{path}: k is {value!r}, and must be a whole number from 1 on.")
    return value
