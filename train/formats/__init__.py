"""Other libraries' files of SAEs, one format a file: recognised, read without running what is in them, written."""

from pathlib import Path

from ...store.errors import StoreError
from ..run_dir import is_run
from . import dictionary_learning, native, post, prisma, saelens, saev, sparsify
from .format import Foreign, Format, Outgoing, Written
from .origin import Origin, hash_of
from .plain import MisfitError, PlainSae

__all__ = ["FORMATS", "Foreign", "Format", "Origin", "Outgoing", "PlainSae", "Written", "hash_of", "read_foreign"]

FORMATS: dict[str, Format] = {
    each.FORMAT.name: each.FORMAT for each in (saelens, sparsify, dictionary_learning, saev, prisma, post, native)
}


def read_foreign(path: Path, name: str | None = None) -> tuple[Format, Foreign]:
    """The SAE at a place, of a format that is named or recognised; `StoreError` says what was looked for."""
    if not path.exists():
        raise StoreError(f"{path} does not exist: name the folder or file of an SAE.")
    if not path.is_file() and not path.is_dir():  # a pipe would be waited for without end
        raise StoreError(f"{path} is neither a file nor a folder: name the folder or file of an SAE.")
    for format_ in FORMATS.values() if name is None else (FORMATS[name],):
        found = format_.find(path)
        if found is not None:
            try:
                return format_, format_.read(found)
            except MisfitError as error:
                raise StoreError(f"{found}: {error}") from error
    if is_run(path):
        raise StoreError(f"{path} is a run of thresher, which needs no import: `thresher encode {path}`.")
    looked_for = "; ".join(f"{each.name}: {each.looks_for}" for each in FORMATS.values() if name in (None, each.name))
    raise StoreError(f"{path} holds no SAE of a format that is read. Looked for {looked_for}.")
