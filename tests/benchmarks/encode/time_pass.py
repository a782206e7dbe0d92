"""Times one implementation in a process of its own, in turn with the bare matmul over the same rows; prints JSON."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "step"))

from encoders import IMPLEMENTATIONS, matmul
from planted import planted
from worker import resident_bytes, timed


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    for name in ("d-in", "d-sae", "rows", "block", "passes"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--l0", type=float, required=True)
    a = parser.parse_args()
    before = resident_bytes("VmRSS")
    p = planted(a.d_in, a.d_sae, a.rows, a.l0, 0)
    blocks = [block.half() for block in p.x.split(a.block)]
    held = resident_bytes("VmRSS")
    bare, run = matmul(p), IMPLEMENTATIONS[a.name].build(p)
    run(blocks[:1])  # warms up
    first_peak = resident_bytes("VmHWM")
    bare(blocks[:1])
    found = []
    for _ in range(a.passes):
        found.append((timed(lambda: bare(blocks)), timed(lambda: run(blocks))))
    print(
        json.dumps(
            {
                "passes": found,
                "own_bytes": resident_bytes("VmHWM") - held,
                "first_block_bytes": first_peak - held,
                "held_bytes": held - before,
                "load": os.getloadavg()[0],
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "time": time.strftime("%F %T"),
            }
        )
    )


if __name__ == "__main__":
    main()
