"""A store in a bucket whose every request is delayed, beside the same bucket without delay.

    python tests/benchmarks/bench_bucket.py [--quick] [--megabytes 400] [--chunks 2000] [--rounds 3]

moto's S3 server on loopback, behind a proxy that answers repeated GETs from its memory (so that the server costs
nothing) and adds the delay. Rounds take turns over the delays; figures are medians, CPU seconds are this process's.
Rows are 1,024 float16, chunks 1,024 rows (2.1 MB), batches 4,096 rows, the buffer 256 MiB.

    open      a store of many chunks, from nothing to its first row's number
    verify    the same store, every byte of it
    epoch     shuffled batches of a pass over the large store, the first pass (each chunk is checked) and the second
    scan      the large store from end to end in blocks of 4,096 rows, three ahead, as `encode` reads it
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
from thresher.store.ahead import in_order
from thresher.store.batches import BatchReader
from thresher.store.format import Site
from thresher.store.layout import StoreSpec, keys_sha256
from thresher.store.provenance import Provenance
from thresher.store.reader import open_store
from thresher.store.verify import verify_store
from thresher.store.writer import create_store

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from s3_on_loopback import BUCKET, FaultyS3, faulty_s3, s3_server

SITE, WIDTH, ROWS_PER_CHUNK, BATCH = Site(22), 1024, 1024, 4096
BUFFER_BYTES = 256 << 20
MANY, LARGE = f"s3://{BUCKET}/many.zarr", f"s3://{BUCKET}/large.zarr"


def make_store(url: str, n: int, width: int, rows_per_chunk: int) -> None:
    """A store of random rows without thumbnails."""
    keys, labels = [b"%d" % i for i in range(n)], np.zeros(n, np.int32)
    provenance = Provenance(
        **{"model": "made up", "pretrained": "none", "weights_sha256": "0" * 64, "quick_gelu": False, "n_layers": 24},
        **{"width": width, "preprocessing": {}, "precision": "fp32", "dtype": "float16", "batch_size": 64, "seed": 0},
        **{"image_source": "made up", "source": [], "limit": None, "n_images": n, "row_order": "random"},
        keys_sha256=keys_sha256(keys, labels),
    )
    spec = StoreSpec(
        provenance=provenance, sites={SITE: width}, n_images=n, rows_per_chunk=rows_per_chunk, thumbnail_px=None
    )
    rows = np.random.default_rng(0).standard_normal((rows_per_chunk, width), np.float32)
    with create_store(url, spec, keys=keys, labels=labels) as writer, ThreadPoolExecutor(8) as pool:

        def write(number: int) -> None:
            start, stop = writer.window_images(number)
            window = writer.window(number)
            window.put(start, {SITE: rows[: stop - start]}, np.ones(stop - start, np.bool_))
            window.commit()

        list(pool.map(write, range(writer.n_windows)))


def opened() -> float:
    """Seconds to open the store of many chunks."""
    start_s = time.perf_counter()
    open_store(MANY).rows_of([0])
    return time.perf_counter() - start_s


def verified() -> float:
    """Seconds to verify it."""
    start_s = time.perf_counter()
    assert not verify_store(MANY).problems
    return time.perf_counter() - start_s


def epochs(threads: int | None, n_passes: int) -> list[float]:
    """MB a second of each pass."""
    array = open_store(LARGE).activations()
    reader = BatchReader([array], batch_size=BATCH, seed=0, last="keep", memory_bytes=BUFFER_BYTES, threads=threads)
    rates, steps = [], reader.steps_per_epoch
    assert steps is not None
    start_s = time.perf_counter()
    with closing(reader.batches(0, n_passes * steps)) as batches:
        for batch in batches:
            if batch.step % steps == steps - 1:
                now_s = time.perf_counter()
                rates.append(reader.n_rows * array.row_bytes / (now_s - start_s) / 1e6)
                start_s = now_s
    return rates


def scanned() -> float:
    """MB a second of a scan."""
    array = open_store(LARGE).activations()
    n = array.store.n_rows
    blocks = [(start, min(start + BATCH, n)) for start in range(0, n, BATCH)]
    start_s = time.perf_counter()
    with closing(in_order(lambda block: array.read(*block), blocks, 3)) as read:
        n_read = sum(len(rows) for rows in read)
    return n_read * array.row_bytes / (time.perf_counter() - start_s) / 1e6


def measure(proxy: FaultyS3, delay_s: float, found: dict[str, list[float]]) -> None:
    """One round at one delay."""
    proxy.plan(delay_s=delay_s, keep=True)
    for name, seconds in (("open", opened), ("verify", verified)):
        cpu_s = time.process_time()
        found[f"{name}, s"].append(seconds())
        found[f"{name}, CPU s"].append(time.process_time() - cpu_s)
    cpu_s = time.process_time()
    first, second = epochs(None, 2)
    found["epoch, CPU s a GB"].append((time.process_time() - cpu_s) / 2 / (large_bytes / 1e9))
    found["first epoch, MB/s"].append(first)
    found["second epoch, MB/s"].append(second)
    found["scan, MB/s"].append(scanned())
    found["most requests at a time"].append(proxy.counts()["in flight"])
    found["one at a time, MB/s"].append(epochs(1, 1)[0])


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="little stores, one round")
parser.add_argument("--megabytes", type=int, default=400, help="of the large store")
parser.add_argument("--chunks", type=int, default=2000, help="of the store of many chunks")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--delays-ms", type=float, nargs="+", default=[0, 20, 50])
a = parser.parse_args()
if a.quick:
    a.megabytes, a.chunks, a.rounds, a.delays_ms = 20, 50, 1, [0, 20]
n_rows = a.megabytes * 1_000_000 // (2 * WIDTH)
large_bytes = n_rows * 2 * WIDTH

with s3_server() as server, faulty_s3(server) as proxy:
    os.environ.update(server.environment)
    make_store(MANY, 4 * a.chunks, 4, 4)
    make_store(LARGE, n_rows, WIDTH, ROWS_PER_CHUNK)
    os.environ.update(proxy.environment)
    measure(proxy, 0, defaultdict(list))  # fills the proxy's memory
    found: dict[float, dict[str, list[float]]] = {delay: defaultdict(list) for delay in a.delays_ms}
    for _ in range(a.rounds):
        for delay in a.delays_ms:
            measure(proxy, delay / 1000, found[delay])

print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {a.rounds} rounds;")
print(f"{a.chunks:,} chunks to open and verify, {large_bytes / 1e6:,.0f} MB to read\n")
print("| delay of each request | " + " | ".join(f"{delay:g} ms" for delay in a.delays_ms) + " |")
print("| --- | " + " | ".join("---:" for _ in a.delays_ms) + " |")
for name in found[a.delays_ms[0]]:
    print(f"| {name} | " + " | ".join(f"{statistics.median(found[d][name]):.3g}" for d in a.delays_ms) + " |")
