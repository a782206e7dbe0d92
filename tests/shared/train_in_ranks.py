"""Trains in the processes that it is started in, and leaves each one's last state: STORE OUT DTYPE STEPS SETTING..."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from thresher.train.loop import train
from thresher.train.ranks import Ranks, joined_ranks
from trained_alike import SETTINGS, digest, in_float64, keeping_states


def check_exchange(ranks: Ranks) -> None:
    """What the processes tell each other arrives, of every type and size."""
    n, rank = ranks.n_ranks, ranks.rank
    large, flags = torch.full((3, 1 << 19), float(rank + 1)), torch.arange(5, dtype=torch.int32) * rank
    small, exact, nothing = torch.tensor([2.0**-30 + rank]), torch.tensor(0.1, dtype=torch.float64), torch.zeros(0, 4)
    ranks.add([small, large, flags, exact, nothing])
    total = n * (n - 1) // 2
    assert (large == total + n).all()
    assert torch.equal(flags, torch.arange(5, dtype=torch.int32) * total)
    assert float(small) == float(torch.tensor(total + n * 2.0**-30))
    assert abs(float(exact) - 0.1 * n) < 1e-15
    first = [torch.full((4,), rank), torch.full((2, 3), float(rank))]
    ranks.take_first(first)
    assert all((tensor == 0).all() for tensor in first)
    assert ranks.collect(torch.arange(rank * 2.0)).tolist() == [float(i) for r in range(n) for i in range(r * 2)]
    assert ranks.collect(torch.zeros(0)).tolist() == []
    assert ranks.tell(f"of rank {rank}: µ") == "of rank 0: µ"
    assert [ranks.any("SIGTERM" if rank == n - 1 else None), ranks.any(None), ranks.any(None)] == [
        None,
        "SIGTERM",
        None,
    ]
    ranks.wait()


def main() -> None:
    store, out, dtype, steps, *names = sys.argv[1:]
    with joined_ranks() as ranks:
        if ranks.n_ranks > 1:
            check_exchange(ranks)
        for name in names:
            options = replace(SETTINGS[name], layer=1)
            options = replace(options, rows=int(steps) * options.batch_size)
            run = Path(out) / name
            resume = ranks.tell(str((run / "config.json").exists())) == "True"
            with in_float64() if dtype == "float64" else nullcontext(), keeping_states() as states:
                train(options, store, run, resume=resume, ranks=ranks)
            (state,) = states.values()
            Path(out, f"{name}.{ranks.rank}.digest").write_text(digest(state))
            if ranks.rank == 0:
                save_file(state, Path(out, f"{name}.state"))


if __name__ == "__main__":
    main()
