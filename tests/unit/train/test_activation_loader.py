"""Epochs of batches for a training loop: each row once, in torch's types, to go on at exactly the next batch."""

import json
import threading

import numpy as np
import pytest
import thresher
import torch
from thresher.store.errors import StoreError
from thresher.store.format import Site
from thresher.store.reader import open_store
from thresher.train.activation_loader import ActivationLoader
from thresher.train.loader import allocator


def loader(path, **options) -> ActivationLoader:
    return ActivationLoader(open_store(path).activations(), **{"batch_size": 64, "seed": 1} | options)


def rows_of(batches) -> list[list[int]]:
    return [batch.rows().tolist() for batch in batches]


@pytest.mark.parametrize("settings", [{}, {"order": "source"}, {"codec": "zstd"}])
@pytest.mark.parametrize("last", ["drop", "keep"])
def test_each_iteration_is_one_epoch_of_distinct_training_rows_in_a_new_order(make_store, settings, last):
    store = open_store(make_store(700, 8, invalid=(13,), **settings).path)
    batches = ActivationLoader(store.activations(), batch_size=64, last=last)
    n_train = 692
    assert len(batches) == {"drop": n_train // 64, "keep": -(-n_train // 64)}[last]
    epochs = []
    for number in range(2):
        assert batches.epoch == number
        found = list(batches)
        assert [(batch.epoch, batch.step) for batch in found] == [(number, step) for step in range(len(batches))]
        rows = np.concatenate([batch.rows() for batch in found])
        assert len(np.unique(rows)) == len(rows) == (n_train if last == "keep" else 64 * (n_train // 64))
        assert (store.positions_of(rows) < n_train).all()
        epochs.append(rows)
    assert not np.array_equal(*epochs)


@pytest.mark.parametrize("stored", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_batches_are_contiguous_and_of_the_wanted_dtype(make_store, stored, wanted):
    store = open_store(make_store(300, 8, dtype=stored).path)
    array = store.activations()
    everything = array.tensor(array.read(0, 300))
    for batch in ActivationLoader(array, batch_size=50, dtype=wanted):
        assert batch.x.dtype == wanted
        assert batch.x.is_contiguous()
        assert torch.equal(batch.x, everything[batch.rows()].to(wanted))


def test_labels_images_and_several_arrays_stand_beside_the_rows(make_store):
    widths = {Site(1): 4, Site(2, "mlp_act"): 16}
    store = open_store(make_store(300, widths=widths, n_labels=7, unlabelled=(3, 4)).path)
    arrays = [store.activations(site) for site in widths]
    labels, images = store.labels(0, 300), store.images(0, 300)
    for batch in ActivationLoader(arrays, batch_size=32):
        assert batch.labels().dtype == torch.int64
        np.testing.assert_array_equal(batch.labels().numpy(), labels[batch.rows()])
        np.testing.assert_array_equal(batch.images(), images[batch.rows()])
        for array, values in zip(arrays, batch.values, strict=True):
            np.testing.assert_array_equal(values.numpy(), array.read(0, 300)[batch.rows()].astype(np.float32))


@pytest.mark.parametrize("settings", [{}, {"order": "source"}])
@pytest.mark.parametrize("stop", [1, 4, 10, 13])
def test_a_loader_goes_on_with_exactly_the_next_batch(make_store, settings, stop):
    path = make_store(700, 8, **settings).path  # 693 training rows: 10 batches an epoch
    whole = loader(path)
    wanted = rows_of([*whole, *whole, *whole])
    first, seen, state = loader(path), [], None
    while len(seen) < stop:
        for batch in first:
            seen.append(batch.rows().tolist())
            if len(seen) == stop:
                state = json.loads(json.dumps(first.state_dict()))
                break
    assert (state["epoch"], state["step"]) == divmod(stop, 10)
    # Given up on the way, it goes on itself; so does another one that is told where, with other memory and threads.
    again = loader(path, memory_bytes=2 * 100 * 16)
    again.load_state_dict(state)
    for going_on in (first, again):
        rest = []
        while going_on.epoch < 3:
            rest += rows_of(going_on)
        assert seen + rest == wanted


def test_the_ranks_of_one_state_make_up_the_batch(make_store):
    path = make_store(700, 8).path
    whole = loader(path)
    next(iter(whole))
    state, (*batches,) = whole.state_dict(), whole
    shares = []
    for rank in range(4):
        share = loader(path, rank=rank, n_ranks=4)
        share.load_state_dict(state)
        shares.append(rows_of(share))
    for step, batch in enumerate(batches):
        assert [row for share in shares for row in share[step]] == batch.rows().tolist()
        assert {len(share[step]) for share in shares} == {16}


@pytest.mark.parametrize(
    ("options", "field"),
    [({"seed": 2}, "seed is 2 "), ({"batch_size": 32}, "batch_size is 32"), ({"last": "keep"}, "last")],
)
def test_a_state_of_another_order_is_refused_by_name(make_store, options, field):
    path = make_store(700, 8).path
    with pytest.raises(StoreError, match=field):
        loader(path).load_state_dict(loader(path, **options).state_dict())


def test_a_state_of_another_store_is_refused(make_store):
    paths = [make_store(700, 8, name=name, seed=seed).path for name, seed in (("a.zarr", 0), ("b.zarr", 1))]
    state = loader(paths[0]).state_dict()
    with pytest.raises(StoreError, match="another order of rows: store is"):
        loader(paths[1]).load_state_dict(state)


def test_an_epoch_given_up_ends_its_threads(make_store):
    batches = loader(make_store(700, 8).path)
    iteration = iter(batches)
    next(iteration)
    iteration.close()
    assert not [t for t in threading.enumerate() if t.name.startswith(("thresher-read", "thresher-draw"))]


def test_wrong_options_are_one_line(make_store):
    path = make_store(700, 8).path
    for options, message in (
        ({"last": "wrap"}, "drop or keep"),
        ({"batch_size": 694}, "do not fill one batch"),
        ({"device": "cuda:99"}, "CUDA devices"),
    ):
        with pytest.raises(ValueError, match=message):
            loader(path, **options)


def test_for_cuda_batches_are_read_into_pinned_memory(monkeypatch):
    asked, empty = [], torch.empty

    def record(*shape, pin_memory=False, **options):
        asked.append(pin_memory)
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", record)
    memory = allocator(torch.device("cuda"))((30, 8), np.float16)
    assert asked == [True]
    assert (memory.shape, memory.dtype, memory.flags.c_contiguous) == ((30, 8), np.float16, True)
    assert allocator(torch.device("cpu")) is None


def test_it_is_part_of_the_public_api():
    assert thresher.ActivationLoader is ActivationLoader


def test_what_is_no_array_of_a_store_is_told_where_they_are(make_store):
    made = make_store(200, 8)
    for wrong in (str(made.path), open_store(made.path), [], [str(made.path)]):
        with pytest.raises(ValueError, match=r"arrays of a store are read: thresher\.open_store\(path\)\.activations"):
            ActivationLoader(wrong, batch_size=16)
