"""Held-out rows: read once in blocks for all SAEs, some blocks ahead, an error for whom it concerns."""

import threading
from contextlib import closing

import numpy as np
import pytest
import torch
from thresher.store.errors import StoreError
from thresher.store.format import Site
from thresher.store.reader import ActivationArray, open_store
from thresher.train import evaluation
from thresher.train.evaluation import Evaluation, evaluate, read_blocks
from thresher.train.models import ReluSae

CPU = torch.device("cpu")


@pytest.fixture
def arrays(make_store, monkeypatch):
    monkeypatch.setattr(evaluation, "_BLOCK_ROWS", 10)
    store = open_store(make_store(300, 8, dtype="float16", sites=(Site(1), Site(2))).path)
    return [store.activations(Site(layer)) for layer in (1, 2)]


def sae(seed: int) -> ReluSae:
    generator = torch.Generator().manual_seed(seed)
    encoder, decoder = (torch.randn(20, 8, generator=generator) for _ in range(2))
    return ReluSae(encoder, torch.zeros(20), decoder, torch.zeros(8))


def test_blocks_are_the_rows_of_all_arrays_in_order(arrays):
    blocks = list(read_blocks(arrays, 3, 207, CPU))
    assert [len(block.of(arrays[0])) for block in blocks] == [10] * 20 + [4]
    for array in arrays:
        rows = torch.cat([block.of(array) for block in blocks])
        assert rows.dtype == torch.float32
        assert np.array_equal(rows.numpy(), array.read_positions(3, 207).astype(np.float32))
    assert not list(read_blocks(arrays, 5, 5, CPU))


def test_a_block_reaches_the_device_once_for_all_who_ask(arrays):
    for block in read_blocks(arrays, 0, 20, CPU):
        assert block.of(arrays[1]) is block.of(arrays[1])


def test_no_more_than_eight_blocks_are_read_ahead_of_the_one_in_use(arrays, monkeypatch):
    n_read, lock, read = 0, threading.Lock(), ActivationArray.read_positions

    def counted(array, start, stop):
        nonlocal n_read
        with lock:
            n_read += 1
        return read(array, start, stop)

    monkeypatch.setattr(ActivationArray, "read_positions", counted)
    with closing(read_blocks(arrays, 0, 290, CPU)) as blocks:
        for n_taken, _ in enumerate(blocks, 1):
            assert 2 * n_taken <= n_read <= 2 * n_taken + 8
    assert n_read == 2 * 29


def test_what_cannot_be_read_is_an_error_for_who_asks_for_it(arrays, monkeypatch):
    read = ActivationArray.read_positions

    def fails(array, start, stop):
        if array is arrays[1] and start == 10:
            raise StoreError("chunk 1 is damaged")
        return read(array, start, stop)

    monkeypatch.setattr(ActivationArray, "read_positions", fails)
    first, second, third = read_blocks(arrays, 0, 30, CPU)
    assert len(second.of(arrays[0])) == 10
    for _ in range(2):
        with pytest.raises(StoreError, match="chunk 1 is damaged"):
            second.of(arrays[1])
    assert len(first.of(arrays[1])) == len(third.of(arrays[1])) == 10


def test_saes_that_share_their_blocks_get_the_numbers_of_each_alone(arrays):
    saes = [sae(seed) for seed in range(3)]
    together = [Evaluation(each, arrays[0], arrays[0]) for each in saes]
    for block in read_blocks(arrays, 0, 290, CPU):
        for each in together:
            each.update(block)
    assert [each.result() for each in together] == [evaluate(each, arrays[0], 0, 290) for each in saes]
    x = torch.from_numpy(arrays[0].read_positions(0, 290).astype(np.float32))
    for each, one in zip(together, saes, strict=True):
        f = one.encode(x)
        assert each.result().l1 == pytest.approx(float(f.double().sum(1).mean()), rel=1e-6)
        assert each.of_features()["n_almost_dead"] == int(((f > 0).sum(0) == 0).sum())
