"""The errors of a store."""


class StoreError(Exception):
    """A store or run that is missing, unfinished, damaged or does not match what is asked of it."""


class MissingStoreError(StoreError):
    """There is no store at the place."""


class DamagedStoreError(StoreError):
    """Bytes on disk differ from what was committed."""


class UnfinishedStoreError(StoreError):
    """The harvest that writes this store has not finished."""


class UnreachableStoreError(StoreError):
    """A bucket does not answer, or refuses: nothing is known about the store's bytes."""
