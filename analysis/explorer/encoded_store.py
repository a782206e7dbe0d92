"""The activation store whose rows a run's statistics are of, found again or said to be another one."""

from ...store.errors import MissingStoreError, StoreError, UnreachableStoreError
from ...store.reader import ActivationStore, open_store
from ...train.configuration import require_training_store
from ...train.run_dir import Run


def open_encoded_store(run: Run, place: str, fingerprint: str) -> ActivationStore:
    """Open the store that was encoded, as it was then.

    Parameters
    ----------
    run
        That it was encoded for.
    place
        Path or URL that it had then. One that was moved along with its run is found too.
    fingerprint
        Its own.

    Raises
    ------
    StoreError
        When it is out of reach or damaged, or when another one is there, naming the first field that differs.
    """
    is_trained_on = run.has_store and run.store_fingerprint == fingerprint
    places = [place, run.store_path] if is_trained_on else [place]  # the run knows where both were moved
    problems = []
    for each in dict.fromkeys(places):
        try:
            store = open_store(each)
            if store.fingerprint != fingerprint and run.has_store:
                store = open_store(each, n_parts=run.n_store_parts)  # images were added since
            if store.fingerprint == fingerprint:
                return store
            if is_trained_on:
                require_training_store(run, store)
            raise StoreError(
                f"{each} is not the store that was encoded: fingerprint is {fingerprint!r} there and "
                f"{store.fingerprint!r} here."
            )
        except (MissingStoreError, UnreachableStoreError, OSError):
            continue
        except StoreError as error:
            problems.append(error)
    raise problems[0] if problems else StoreError(f"The activation store {place} is out of reach.")
