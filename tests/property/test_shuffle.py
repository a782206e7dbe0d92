import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thresher.store.epochs import ChunkRuns, EpochOrder, UniformRuns
from thresher.store.positions import Positions
from thresher.store.row_order import RowOrder, n_held_out
from thresher.store.shuffle import Permutation


@given(st.integers(1, 5000), st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_a_permutation_takes_every_index_to_another_place_once(n, key):
    np.testing.assert_array_equal(np.sort(Permutation(n, key)(np.arange(n))), np.arange(n))


@given(st.integers(1, 700), st.integers(1, 300), st.integers(0, 100), st.none() | st.integers(1, 90))
@settings(max_examples=60, deadline=None)
def test_each_pass_of_the_batches_holds_each_row_once(n, batch, seed, run_length):
    order = EpochOrder.uniform(n, batch, seed, run_length)
    stream = []
    for step in range(-(-3 * n // batch)):
        starts, lengths = order.runs(step)
        assert lengths.sum() == batch
        assert (lengths > 0).all()
        assert (starts >= 0).all()
        assert (starts + lengths <= n).all()
        stream += [np.arange(s, s + k) for s, k in zip(starts, lengths, strict=True)]
    rows = np.concatenate(stream)
    for number in range(3):
        np.testing.assert_array_equal(np.sort(rows[number * n : (number + 1) * n]), np.arange(n))


@given(st.integers(2, 400), st.integers(1, 64), st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_a_batch_depends_on_its_number_alone(n, batch, step):
    fresh = EpochOrder.uniform(n, batch, 7).runs(step)
    used = EpochOrder.uniform(n, batch, 7)
    for s in (0, step + 3, 1):
        used.runs(s)
    for a, b in zip(used.runs(step), fresh, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("n", [2, 3, 7, 50])
def test_over_many_keys_every_index_goes_everywhere_equally_often(n):
    from scipy.stats import chisquare

    keys = 1000
    table = np.stack([Permutation(n, 3, key)(np.arange(n)) for key in range(keys)])
    p_values = [chisquare(np.bincount(table[:, i], minlength=n)).pvalue for i in range(n)]
    assert min(p_values) > 1e-4 / n


def test_two_neighbours_are_parted_like_any_two_rows():
    # The distance between the places of rows i and i + 1 under a random permutation of n has mean (n + 1) / 3.
    n = 20_000
    place = Permutation(n, 11)(np.arange(n))
    assert np.abs(np.diff(place)).mean() == pytest.approx((n + 1) / 3, rel=0.02)


def test_orders_of_different_seeds_and_passes_differ():
    places = np.arange(1000)
    assert (RowOrder(1000, seed=0).images_at(places) != RowOrder(1000, seed=1).images_at(places)).mean() > 0.9


@given(st.integers(1, 3000), st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_the_inverse_of_a_permutation_undoes_it(n, key):
    order = Permutation(n, key)
    np.testing.assert_array_equal(order.inverse(order(np.arange(n))), np.arange(n))


@given(
    st.integers(1, 400), st.integers(1, 9), st.integers(1, 60), st.sampled_from(["random", "source"]), st.integers(0, 9)
)
@settings(max_examples=60, deadline=None)
def test_a_row_order_holds_each_token_of_each_image_once_and_within_its_window(images, tokens, window, order, seed):
    rows = RowOrder(images, tokens, window, order, seed)
    every = np.arange(images * tokens)
    pairs = rows.images(every) * tokens + rows.tokens(every)
    np.testing.assert_array_equal(np.sort(pairs), every)
    back = rows.rows(np.arange(images))
    np.testing.assert_array_equal(rows.images(back.ravel()), np.repeat(np.arange(images), tokens))
    np.testing.assert_array_equal(rows.tokens(back.ravel()), np.tile(np.arange(tokens), images))
    for number in range(rows.n_windows):
        first, last = rows.window_images(number)
        of_window = np.sort(rows.rows_at(np.arange(first, last)).ravel())
        np.testing.assert_array_equal(of_window, np.arange(*rows.window_rows(number)))


@given(
    st.integers(1, 450),
    st.integers(1, 5),
    st.integers(1, 64),
    st.sampled_from(["random", "source"]),
    st.integers(0, 3),
    st.data(),
)
@settings(max_examples=80, deadline=None)
def test_positions_are_the_readable_rows_once_each_and_no_image_is_both_trained_on_and_held_out(
    images, tokens, window, order, seed, data
):
    invalid = data.draw(st.lists(st.integers(0, images - 1), max_size=images, unique=True))
    rows = RowOrder(images, tokens, window, order, seed)
    positions = Positions(rows, np.array(invalid, np.int64))
    every = np.arange(positions.n_valid)
    of_position = positions.rows(every)
    readable = np.flatnonzero(~np.isin(rows.images(np.arange(rows.n_rows)), invalid))
    np.testing.assert_array_equal(np.sort(of_position), readable)
    np.testing.assert_array_equal(positions.of_rows(of_position), every)
    unreadable = np.setdiff1d(np.arange(rows.n_rows), readable)
    assert (positions.of_rows(unreadable) == -1).all()
    train, held_out = np.split(of_position, [positions.n_train])
    assert (np.diff(train) > 0).all()
    assert (np.diff(held_out) > 0).all()
    assert not np.intersect1d(rows.images(train), rows.images(held_out)).size
    edges = np.arange(rows.n_rows + 1)
    np.testing.assert_array_equal(positions.n_train_before(edges), np.searchsorted(train, edges))
    n_readable = images - len(invalid)
    if order == "source" or tokens == 1:
        assert len(held_out) == n_held_out(n_readable) * tokens


def test_the_held_out_images_of_a_sorted_source_are_spread_over_it():
    positions = Positions(RowOrder(10_000, 1, 64, "source"), np.array([], np.int64))
    held_out = positions.rows(np.arange(positions.n_train, positions.n_valid))
    np.testing.assert_array_equal(held_out // 100, np.arange(100))
    assert len(np.unique(held_out % 100)) > 50


@given(st.lists(st.integers(0, 300), min_size=1, max_size=6).filter(any), st.integers(1, 90), st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_every_batch_draws_from_every_part_in_proportion(sizes, batch, seed):
    firsts = np.cumsum([0, *sizes[:-1]])
    parts = [
        ChunkRuns(np.array([0, n // 3, n // 3, n]), seed, i) if i % 2 and n else UniformRuns(max(n, 1), 7, seed, i)
        for i, n in enumerate(sizes)
    ]
    for part, n in zip(parts, sizes, strict=True):
        part.n = n
    order = EpochOrder(parts, firsts.tolist(), batch, "keep")
    total = sum(sizes)
    seen = []
    for step in range(order.steps_per_pass):
        starts, lengths = order.runs(step)
        drawn = np.concatenate([np.arange(s, s + k) for s, k in zip(starts, lengths, strict=True)])
        counts = np.histogram(drawn, [*firsts, total])[0]
        assert np.abs(counts - len(drawn) * np.array(sizes) / total).max() <= sum(1 / k for k in range(1, 7))
        seen.append(drawn)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(total))


def test_whole_chunks_come_in_another_order_in_each_pass_of_each_part_and_seed():
    edges = np.arange(0, 64 * 501, 64)
    orders = [
        ChunkRuns(edges, seed, part).runs(number, 0, int(edges[-1]))[0] // 64
        for seed, part, number in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))
    ]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(500))
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.2  # 4.5 standard errors


@pytest.mark.parametrize("last", ["wrap", "keep", "drop"])
def test_the_last_batch_is_filled_kept_or_dropped(last):
    order = EpochOrder.uniform(100, 30, 0, last=last)
    sizes = [int(order.runs(step)[1].sum()) for step in range(8)]
    assert sizes == {"wrap": [30] * 8, "keep": [30, 30, 30, 10] * 2, "drop": [30] * 8}[last]
    assert order.steps_per_pass == {"wrap": None, "keep": 4, "drop": 3}[last]


@pytest.mark.parametrize(
    ("n", "batch"),
    # 40, 24 and 10 rows beyond whole runs of 64, 64 and 16: about a golden section of a run, by which cuts move
    [(400_000, 4096), (400_040, 1024), (400_024, 1024), (100_010, 256)],
)
def test_at_most_a_twentieth_of_batch_mates_meet_again_in_the_next_pass(n, batch):
    order = EpochOrder.uniform(n, batch, 0, last="drop")
    before = None
    for number in range(8):
        batch_of = np.full(n, -1)
        for step in range(order.steps_per_pass):
            starts, lengths = order.runs(number * order.steps_per_pass + step)
            for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
                batch_of[start : start + length] = step
        if before is not None:
            in_both = (before >= 0) & (batch_of >= 0)
            pair_counts = np.bincount(before[in_both] * order.steps_per_pass + batch_of[in_both])
            sizes = np.bincount(before[in_both])
            assert (pair_counts * (pair_counts - 1)).sum() / (sizes * (sizes - 1)).sum() < 0.05
        before = batch_of


def test_the_rows_that_fill_no_batch_are_others_in_every_pass():
    n, batch = 5003, 256
    order = EpochOrder.uniform(n, batch, 0, last="drop")
    n_missed = np.zeros(n, int)
    for number in range(200):
        missed = np.ones(n, bool)
        for step in range(order.steps_per_pass):
            starts, lengths = order.runs(number * order.steps_per_pass + step)
            for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
                missed[start : start + length] = False
        n_missed += missed
    # 139 of 5003 in each of 200 passes: 5.6 a row on average
    assert n_missed.sum() == 200 * (n % batch)
    assert n_missed.max() < 20
