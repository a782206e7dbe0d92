"""Which features `--features` asks for."""

from collections.abc import Iterator

import numpy as np

from ..naming.names_file import read_names
from .options import VisualiseOptions
from .probe import ProbedRun


def chosen_features(probed: ProbedRun, options: VisualiseOptions) -> list[int]:
    """The features that the words of `features` name, each once, in their order.

    Raises
    ------
    ValueError
        When one is none of the run's, a range is empty, or `named` finds no name.
    """
    return list(dict.fromkeys(each for word in options.feature_words for each in _of_word(probed, word, options.seed)))


def _of_word(probed: ProbedRun, word: str, seed: int) -> Iterator[int]:
    n, statistics = probed.probe.n_features, probed.stored.statistics
    if word == "named":
        names, problem = read_names(probed.path, n)
        if not names:
            why = f" ({problem})" if problem else ""
            raise ValueError(
                f"{probed.path} has no names{why}: run `thresher name {probed.path}`, or ask for --features top:16."
            )
        yield from names
    elif ":" in word:
        kind, _, count = word.partition(":")
        firing = np.flatnonzero(statistics.n_active > 0)
        if not len(firing):
            raise ValueError(f"no feature of {probed.path} fires, so that {word} names none: give ids.")
        if kind == "top":
            firing = firing[np.argsort(-statistics.mean_top[firing], kind="stable")]
        else:
            firing = np.random.default_rng([seed, 12]).permutation(firing)
        yield from sorted(firing[: int(count)].tolist())
    else:
        first, _, last = word.partition("-")
        start, stop = int(first), int(last or first) + 1
        if start >= stop:
            raise ValueError(f"features {word} is empty: a range goes from the smaller id to the larger.")
        if stop > n:
            raise ValueError(f"features {word}: the run has the features 0 to {n - 1:,}.")
        yield from range(start, stop)
