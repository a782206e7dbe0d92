"""The order of a part's rows: which image, and which of its tokens, each row holds.

Words: a *place* is an image's number in the row order; a *window* is `images_per_window` consecutive places, whose rows
are mixed, written and committed together. T tokens an image.
"""

from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .shuffle import ROW_ORDER, TOKEN_ORDER, Permutation

Indices = NDArray[np.integer[Any]]

_KEPT_SEGMENTS = 16


def n_held_out(n: int) -> int:
    """How many of `n` are held out: 1 %, rounded up; none where there is but one."""
    return min(n - 1, -(-n // 100)) if n > 1 else 0


class RowOrder:
    """Where each row of a part comes from, computed from its number.

    In random order the images come in a seeded random order. With several tokens an image, the rows of a window are in
    a random order too; a window that holds the first held-out image is shuffled on either side of it, so that the
    held-out rows are whole images, and the last rows.

    Parameters
    ----------
    n_images
        Images of the part.
    tokens_per_image
        T.
    images_per_window
        Places of a window; the last may have fewer.
    order
        `random`, or `source`: places are images, rows are their tokens one after the other.
    seed
        Of the random order.
    """

    def __init__(
        self,
        n_images: int,
        tokens_per_image: int = 1,
        images_per_window: int = 1024,
        order: str = "random",
        seed: int = 0,
    ) -> None:
        if min(n_images, tokens_per_image, images_per_window) < 1:
            raise ValueError(
                f"{n_images} images, {tokens_per_image} tokens, {images_per_window} images a window: each is at least 1"
            )
        self.n_images, self.tokens_per_image, self.images_per_window = n_images, tokens_per_image, images_per_window
        self.is_random, self.seed = order == "random", seed
        self.n_rows = n_images * tokens_per_image
        self.n_windows = -(-n_images // images_per_window)
        self.held_out_place = n_images - n_held_out(n_images)
        """First place of the held-out images, in random order."""
        self._images = Permutation(n_images, ROW_ORDER, seed)
        self._segments: OrderedDict[int, Permutation] = OrderedDict()

    def window_images(self, window: int) -> tuple[int, int]:
        """First place of a window, and the place after its last."""
        start = window * self.images_per_window
        return start, min(start + self.images_per_window, self.n_images)

    def window_rows(self, window: int) -> tuple[int, int]:
        """First row of a window, and the row after its last."""
        start, stop = self.window_images(window)
        return start * self.tokens_per_image, stop * self.tokens_per_image

    def images_at(self, places: Indices) -> NDArray[np.int64]:
        """The image at each place."""
        return self._images(places) if self.is_random else np.asarray(places, np.int64)

    def places(self, images: Indices) -> NDArray[np.int64]:
        """The place of each image."""
        return self._images.inverse(images) if self.is_random else np.asarray(images, np.int64)

    def images(self, rows: Indices) -> NDArray[np.int64]:
        """The image of each row."""
        return self.images_at(self._tokens_in_order(rows) // self.tokens_per_image)

    def tokens(self, rows: Indices) -> NDArray[np.int64]:
        """Which of its image's tokens each row is, 0 to T - 1."""
        return self._tokens_in_order(rows) % self.tokens_per_image

    def rows(self, images: Indices) -> NDArray[np.int64]:
        """The rows of each image's tokens, `(k, T)`."""
        return self.rows_at(self.places(images))

    def rows_at(self, places: Indices) -> NDArray[np.int64]:
        """The rows of the tokens of the image at each place, `(k, T)`."""
        t = self.tokens_per_image
        number = (np.asarray(places, np.int64)[:, None] * t + np.arange(t)).ravel()
        return self._through_segments(number, inverse=True).reshape(-1, t)

    def _tokens_in_order(self, rows: Indices) -> NDArray[np.int64]:
        """The number of each row's token, were the tokens of the image at place 0 first, then those of place 1, ..."""
        return self._through_segments(np.asarray(rows, np.int64), inverse=False)

    def _through_segments(self, numbers: NDArray[np.int64], *, inverse: bool) -> NDArray[np.int64]:
        t = self.tokens_per_image
        if t == 1 or not self.is_random:
            return numbers
        # A segment (a window, or one of the two sides of the window with the first held-out image) is permuted within.
        place = numbers // t
        start = place // self.images_per_window * self.images_per_window
        start = np.where((place >= self.held_out_place) & (start < self.held_out_place), self.held_out_place, start)
        out = np.empty_like(numbers)
        for first in np.unique(start).tolist():
            of_segment = start == first
            order = self._segment(first)
            local = numbers[of_segment] - first * t
            out[of_segment] = first * t + (order.inverse(local) if inverse else order(local))
        return out

    def _segment(self, first: int) -> Permutation:
        order = self._segments.get(first)
        if order is None:
            stop = min((first // self.images_per_window + 1) * self.images_per_window, self.n_images)
            if first < self.held_out_place:
                stop = min(stop, self.held_out_place)
            order = Permutation((stop - first) * self.tokens_per_image, TOKEN_ORDER, self.seed, first)
            self._segments[first] = order
            while len(self._segments) > _KEPT_SEGMENTS:
                self._segments.popitem(last=False)
        return order
