"""Times some optimiser steps of one implementation in a process of its own, beside the plain matmul; prints JSON."""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable

import torch
from implementations import IMPLEMENTATIONS
from planted import planted


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds, of all threads, and wall seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def resident_bytes(field: str) -> int:
    """`VmRSS` or `VmHWM` of this process."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    for name in ("d-in", "d-sae", "batch", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--l0", type=float, required=True)
    a = parser.parse_args()
    implementation = IMPLEMENTATIONS[a.name]
    before = resident_bytes("VmRSS")
    p = planted(a.d_in, a.d_sae, a.batch, 0 if implementation.is_dense else a.l0, implementation.share_dead)
    matmul = [timed(lambda: p.x @ p.encoder.T) for _ in range(3)][1:]
    step = implementation.build(p)
    step()  # warms up: allocates Adam's moments
    steps = [timed(step) for _ in range(a.steps)]
    print(
        json.dumps(
            {
                "steps": steps,
                "matmul": matmul,
                "own_bytes": resident_bytes("VmHWM") - before,
                "faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt,
                "load": os.getloadavg()[0],
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
