import pytest
import torch
from thresher.harvest.forward import TowerRunner, divide_threads
from thresher.harvest.ranks import Ranks
from thresher.harvest.sites import capture
from thresher.harvest.vision import load_tower
from thresher.store.format import Site


@pytest.fixture
def tower(tiny_model):
    return load_tower(str(tiny_model))


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def batches(n):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=generator) for _ in range(n)]


@pytest.mark.usefixtures("three_threads")
def test_batches_in_parallel_give_each_its_own_rows_in_order(tower):
    sites = [Site(0), Site(2)]
    with TowerRunner(tower, sites, n_batches=40) as runner:
        assert runner.n_parallel == 3
        rows = [future.result() for future in [runner.submit(pixels) for pixels in batches(40)]]
    for pixels, got in zip(batches(40), rows, strict=True):
        expected = capture(tower, tower.normalise(pixels), sites)
        for site in sites:
            torch.testing.assert_close(got[site], expected[site], rtol=0, atol=1e-6)  # other thread counts, other sums


@pytest.mark.usefixtures("three_threads")
def test_the_copies_for_threads_share_the_weights(tower):
    with TowerRunner(tower, [Site(0)], n_batches=9) as runner:
        own = runner._towers.get()
        assert own.visual is not tower.visual
        assert own.visual.conv1.weight.data_ptr() == tower.visual.conv1.weight.data_ptr()
        runner._towers.put(own)


@pytest.mark.usefixtures("three_threads")
def test_torchs_thread_count_is_as_before_afterwards(tower):
    with TowerRunner(tower, [Site(0)], n_batches=9) as runner:
        runner.submit(batches(1)[0]).result()
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_what_has_not_begun_is_dropped_on_close(tower):
    with TowerRunner(tower, [Site(0)], n_batches=40) as runner:
        futures = [runner.submit(pixels) for pixels in batches(40)]
    assert all(future.done() for future in futures)
    assert not futures[0].cancelled()


@pytest.mark.usefixtures("three_threads")
def test_one_batch_has_all_threads(tower):
    with TowerRunner(tower, [Site(0)], n_batches=1) as runner:
        assert runner.n_parallel == 1


@pytest.mark.usefixtures("three_threads")
def test_an_error_in_a_thread_reaches_the_caller(tower):
    with TowerRunner(tower, [Site(0)], n_batches=9) as runner:
        future = runner.submit(torch.zeros(1, 17, 17, 3, dtype=torch.uint8))
        with pytest.raises(RuntimeError):
            future.result()


@pytest.mark.parametrize(
    ("n_threads", "n_batches", "expected"),
    [(2, 100, (2, 1)), (2, 1, (1, 2)), (16, 100, (8, 2)), (12, 100, (8, 1)), (64, 3, (3, 21)), (1, 9, (1, 1))],
)
def test_the_threads_of_a_batch_follow_from_the_machine_and_the_store(n_threads, n_batches, expected):
    assert divide_threads(n_threads, n_batches) == expected


class Local(Ranks):
    """One of some processes of a machine with so many threads."""

    def __init__(self, local_rank, n_local, n_threads=12):
        super().__init__()
        self.local_rank, self.n_local, self.n_threads = local_rank, n_local, n_threads

    def threads(self):
        return self.n_threads


@pytest.mark.parametrize("n_local", [1, 2, 3, 5, 11])
def test_processes_share_the_batches_and_give_each_batch_the_threads_that_one_process_would(tower, n_local):
    parallel = []
    for local_rank in range(n_local):
        with TowerRunner(tower, [Site(0)], n_batches=6, ranks=Local(local_rank, n_local)) as runner:
            parallel.append(runner.n_parallel)
            assert runner.threads_per_batch == 2
            assert runner._threads.submit(torch.get_num_threads).result() == 2
    assert sum(parallel) == max(6, n_local)
    assert max(parallel) - min(parallel) <= 1


def test_a_batch_has_the_same_bits_in_one_process_and_in_one_of_several(models):
    # one image in sixteen threads: there torch splits sums otherwise than in one
    vision = {"image_size": 32, "layers": 4, "width": 96, "head_width": 32, "patch_size": 8}
    tower = load_tower(str(models.write("wider", vision_cfg=vision)))
    site = Site(2, "mlp_act", "all")
    pixels = batches(1)[0][:1]
    before, rows = torch.get_num_threads(), {}
    try:
        for n_threads, ranks in ((16, None), (1, Local(1, 2, 16))):  # what torch has in each process
            torch.set_num_threads(n_threads)
            with TowerRunner(tower, [site], n_batches=1, ranks=ranks) as runner:
                rows[n_threads] = runner.submit(pixels).result()[site]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(rows[16], rows[1])
