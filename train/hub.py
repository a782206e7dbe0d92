"""SAEs to and from the Hugging Face hub: what `push` and `pull` do.

A pulled repository is someone else's: only the files by which a format is recognised are asked for, by their own names,
up to a size; they are read as `import` reads them.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..store.errors import StoreError
from .formats import FORMATS, read_foreign
from .interchange import ImportResult, origin_of, outgoing, save_foreign
from .interchange_options import PullOptions, PushOptions
from .model_card import model_card
from .run_dir import CONFIG, open_run

# By which the formats' files are known; names that vary are of folders that hold nothing else.
_WANTED = frozenset(
    {
        *("cfg.json", "config.json", "thresher.json", "sae_weights.safetensors", "sae.safetensors"),
        *("activation_scaler.json", "ae.pt", "sae.pt", "weights.pt", "final_sparse_autoencoder.pt"),
    }
)
_WEIGHTS = (".safetensors", ".pt")


@dataclass(frozen=True, kw_only=True)
class PushResult:
    """What was pushed."""

    repo_id: str
    folder: str
    format: str
    files: list[str]
    commit: str
    """Its id on the hub."""
    notes: list[str]


def push(run_path: Path | str, repo_id: str, options: PushOptions | None = None) -> PushResult:
    """Write a run's SAE to a model repository of the hub, as one commit, with a model card.

    Raises
    ------
    ValueError
        When `repo_id` is no name of a repository.
    StoreError
        When the hub does not answer or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    options = options or PushOptions()
    run = open_run(run_path)
    out = outgoing(run)
    written = FORMATS[options.format].write(out)
    folder = _folder_name(options.folder or _usual_folder(origin_of(run).to_json()))
    files = {f"{folder}/{name}": content for name, content in written.files.items()}
    files["README.md"] = model_card(run, out, repo_id, folder, options.format).encode()
    api = HfApi(token=_token(options.token_file))
    with _hub_errors(repo_id):
        _check_repo_id(repo_id)
        api.create_repo(repo_id, private=options.private or None, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message=f"SAE of {out.plain.W_enc.shape[1]} features, written by thresher",
        )
    return PushResult(
        repo_id=repo_id,
        folder=folder,
        format=options.format,
        files=list(files),
        commit=str(commit.oid),
        notes=written.notes,
    )


def pull(repo_id: str, run_path: Path | str, options: PullOptions | None = None) -> ImportResult:
    """Make a run of an SAE in a model repository of the hub, of any format that `import` reads.

    Raises
    ------
    ValueError
        When `repo_id` is no name of a repository.
    StoreError
        When the hub does not answer or refuses, the repository holds no SAE or several, it is larger than the limit;
        and as `import_sae` does.
    """
    from huggingface_hub import HfApi

    options, run_path = options or PullOptions(), Path(run_path)
    if (run_path / CONFIG).exists() and not options.overwrite:
        raise StoreError(f"{run_path} already holds a run: replace it (--overwrite) or choose another RUN.")
    api = HfApi(token=_token(options.token_file))
    with tempfile.TemporaryDirectory(prefix="thresher-pull-") as temporary:
        with _hub_errors(repo_id):
            _check_repo_id(repo_id)
            info = api.model_info(repo_id, revision=options.revision, files_metadata=True)
            sizes = {each.rfilename: each.size for each in info.siblings or []}
            folder, names = _choose(repo_id, sizes, options.folder)
            _check_size(repo_id, {name: sizes[name] for name in names}, options.size_limit_gb)
            for name in names:
                got = api.hf_hub_download(repo_id, name, revision=info.sha, local_dir=temporary)
                if Path(got).stat().st_size != sizes[name]:
                    raise StoreError(f"{repo_id}: {name} came with another size than the hub says. Pull again.")
        format_, foreign = read_foreign(Path(temporary) / folder, options.format)
        source = f"{repo_id}@{info.sha}" + (f":{folder}" if folder else "")
        return save_foreign(foreign, format_.name, source, run_path, options)


def _check_repo_id(repo_id: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except ValueError:
        raise ValueError(
            f"{repo_id!r} names no repository of the hub: OWNER/NAME, of letters, digits, '-', '_' and '.'"
        ) from None


def _token(path: str | None) -> str | None:
    if path is None:
        return None  # huggingface_hub looks in HF_TOKEN, then where `hf auth login` put it
    words = Path(path).read_text().split()
    if len(words) != 1:
        raise StoreError(f"{path} does not hold one access token.")
    return words[0]


def _usual_folder(origin: dict[str, Any]) -> str:
    """A folder's name that tells sites of a repository apart: SAELens needs one, as its `sae_id`."""
    if "layer" not in origin:
        return "sae"
    parts = (f"layer_{origin['layer']}", origin.get("site"), origin.get("token"))
    return "_".join(part for part in parts if part)


def _folder_name(name: str) -> str:
    if not _is_plain(name):
        raise ValueError(f"--folder {name!r} must be a path inside the repository")
    return name.strip("/")


def _is_plain(name: str) -> bool:
    """Whether a name of a repository stays in the folder that it is put into."""
    parts = name.split("/")
    is_safe = all(part not in ("", ".", "..") and part.isprintable() for part in parts)
    return is_safe and "\\" not in name and ":" not in name and not PurePosixPath(name).is_absolute()


def _choose(repo_id: str, sizes: dict[str, int | None], folder: str | None) -> tuple[str, list[str]]:
    """The folder of the SAE, "" for the repository itself, and the files to download from there."""
    odd = [name for name in sizes if not _is_plain(name)]
    if odd:
        raise StoreError(f"{repo_id} holds a file named {odd[0]!r}, which leads out of its folder: it is not pulled.")
    by_folder: dict[str, list[str]] = {}
    for name in sizes:
        place = PurePosixPath(name)
        is_wanted = place.name in _WANTED or (place.name.startswith("n_images_") and place.suffix == ".pt")
        if is_wanted:
            by_folder.setdefault("" if str(place.parent) == "." else str(place.parent), []).append(name)
    held = sorted(place for place, names in by_folder.items() if any(name.endswith(_WEIGHTS) for name in names))
    chosen = folder.strip("/") if folder is not None else held[0] if len(held) == 1 else None
    if chosen in held:
        return str(chosen), sorted(by_folder[str(chosen)])
    if not held:
        weights = ", ".join(sorted(name for name in _WANTED if name.endswith(_WEIGHTS)))
        raise StoreError(f"{repo_id} holds no SAE: none of {weights}.")
    shown = ", ".join(place or "." for place in held[:8]) + (f" and {len(held) - 8} more" if len(held) > 8 else "")
    what = f"holds no SAE in {folder}" if folder is not None else f"holds {len(held)} SAEs"
    raise StoreError(f"{repo_id} {what}: name one with --folder ({shown}).")


def _check_size(repo_id: str, sizes: dict[str, int | None], limit_gb: float) -> None:
    unknown = [name for name, size in sizes.items() if size is None]
    if unknown:
        raise StoreError(f"{repo_id}: the hub does not say how large {unknown[0]} is: it is not pulled.")
    total = sum(size or 0 for size in sizes.values())
    if total > limit_gb * 1e9:
        raise StoreError(f"{repo_id} would be {total / 1e9:.1f} GB, more than --size-limit-gb {limit_gb:g}.")


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line with the next step."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise StoreError(f"{repo_id} is gated: ask for access on its page, then give --token-file.") from None
    except errors.RepositoryNotFoundError:
        raise StoreError(
            f"{repo_id} is not on the hub, or is private to others: check the name, or give --token-file."
        ) from None
    except errors.RevisionNotFoundError:
        raise StoreError(f"{repo_id} has no such revision: check --revision.") from None
    except errors.LocalEntryNotFoundError:
        raise StoreError(f"{repo_id} was not reached: is this machine online, and HF_ENDPOINT right?") from None
    except errors.EntryNotFoundError as error:
        raise StoreError(f"{repo_id} lacks a file that it lists: {_short(error)}") from None
    except errors.OfflineModeIsEnabled:
        raise StoreError(f"{repo_id} was not reached: HF_HUB_OFFLINE is set; unset it.") from None
    except errors.LocalTokenNotFoundError:
        raise StoreError("the hub wants an access token: set HF_TOKEN, or give --token-file.") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise StoreError(
                f"the hub refuses access to {repo_id} (status {status}): give --token-file with a token that may "
                "write to it, or read it."
            ) from None
        raise StoreError(f"the hub answered with status {status} for {repo_id}: {_short(error)}") from None
    except (StoreError, ValueError):
        raise
    except Exception as error:
        if not _is_of_network(error):
            raise
        raise StoreError(
            f"{repo_id} was not reached ({type(error).__name__}): is this machine online, and HF_ENDPOINT right?"
        ) from None


def _is_of_network(error: Exception) -> bool:
    """Whether an error is a transport's: which one huggingface_hub uses differs between its versions."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
