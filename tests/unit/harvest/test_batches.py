"""Batches from decoding processes."""

import multiprocessing
import socket
from multiprocessing import resource_sharer

import numpy as np
import pytest
import torch
from thresher.harvest.batches import Batch, decoded_batches
from thresher.store.row_order import RowOrder


class Decoder:
    """Pixels that say their place, in place of pictures."""

    def __getitem__(self, places):
        start, stop = places
        pixels = torch.arange(start, stop, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 2, 2, 3).contiguous()
        return Batch(start, pixels, np.ones(stop - start, bool), [], None, 0.0)


def batches():
    return decoded_batches(Decoder(), RowOrder(8, order="source"), [0], batch_size=4, workers=1, pin=False)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="tensors are handed over otherwise")
def test_a_worker_says_nothing_when_its_receiver_is_stopped_as_it_takes_a_batch(monkeypatch, capfd):
    def stopped(ident):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(ident[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(resource_sharer._resource_sharer, "get_connection", stopped)
    with pytest.raises(KeyboardInterrupt):
        next(batches())
    assert capfd.readouterr().err == ""


def test_workers_give_the_batches_in_order():
    found = [(batch.start, batch.pixels[:, 0, 0, 0].tolist()) for batch in batches()]
    assert found == [(0, [0, 1, 2, 3]), (4, [4, 5, 6, 7])]
