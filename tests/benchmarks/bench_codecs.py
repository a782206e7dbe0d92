"""What each codec gains on real activations: `python tests/benchmarks/bench_codecs.py [--layer 5] [--token cls]`.

Rows are those of the embedded tower on the embedded pictures, in chunks of 1,024, through the store's own codecs.
Ratio: raw bytes over compressed bytes. Speeds: raw gigabytes a CPU second, the median over chunks. The last column is
the ratio that `info` advises by (`store/codec_advice.py`). `none` is a view of the rows: it takes no time.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from thresher.harvest.decode import decode_image
from thresher.harvest.images import open_images
from thresher.harvest.sites import capture, resolve_sites
from thresher.harvest.vision import load_tower
from thresher.store.codec import ChunkCodec
from thresher.store.codec_advice import MEASURED
from thresher.store.format import CODECS, DTYPES, SITES, TOKENS
from thresher.store.writer import to_bfloat16

CHUNK, BATCH = 1024, 128


def activations(layer: int, token: str, n_images: int) -> dict[str, np.ndarray]:
    """Vectors of some random pictures at every site, `(n, d)` float32, in a random order."""
    tower = load_tower("quickstart")
    sites = resolve_sites(tower, (layer,), SITES, token)
    rng = np.random.default_rng(0)
    found: dict[str, list[np.ndarray]] = {site: [] for site in SITES}
    with open_images("quickstart") as images:
        chosen = rng.permutation(images.n_images)[:n_images].tolist()
        for start in range(0, len(chosen), BATCH):
            pictures = [decode_image(images.read(image)) for image in chosen[start : start + BATCH]]
            pixels = torch.from_numpy(np.stack([tower.pixels(picture) for picture in pictures]))
            for site, values in capture(tower, tower.normalise(pixels), sites).items():
                found[site.site].append(values.flatten(0, -2).numpy())
    rows = {site: np.concatenate(parts) for site, parts in found.items()}
    order = rng.permutation(len(rows["resid_post"]))
    return {site: np.ascontiguousarray(values[order]) for site, values in rows.items()}


def stored(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Rows in the dtype that the store keeps."""
    return to_bfloat16(rows) if dtype == "bfloat16" else rows.astype(DTYPES[dtype])


def measure(chunks: list[np.ndarray], name: str, repeats: int) -> tuple[float, float, float]:
    """Ratio, and GB/s of encoding and decoding, over some chunks."""
    codec = ChunkCodec(name)
    encode_s, decode_s, raw, compressed = [], [], 0, 0
    for chunk in chunks:
        payload = codec.encode(chunk)
        raw, compressed = raw + chunk.nbytes, compressed + len(payload)
        if not np.array_equal(codec.decode(payload, chunk.shape, chunk.dtype).view(np.uint8), chunk.view(np.uint8)):
            raise ValueError(f"{name} does not give back what it was given")
        encode_s.append(_cpu_s(lambda chunk=chunk: codec.encode(chunk), repeats) / chunk.nbytes)
        decode = lambda payload=payload, chunk=chunk: codec.decode(payload, chunk.shape, chunk.dtype)  # noqa: E731
        decode_s.append(_cpu_s(decode, repeats) / chunk.nbytes)
    return raw / compressed, 1e-9 / statistics.median(encode_s), 1e-9 / statistics.median(decode_s)


def _cpu_s(run: Callable[[], Any], repeats: int) -> float:
    started = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - started) / repeats


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two chunks, few repeats")
    parser.add_argument("--layer", type=int, default=5, help="0-based")
    parser.add_argument("--token", choices=TOKENS, default="cls")
    parser.add_argument("--images", type=int, default=8 * CHUNK)
    parser.add_argument("--repeats", type=int, default=20)
    a = parser.parse_args()
    if a.quick:
        a.images, a.repeats = 2 * CHUNK, 2
    rows = activations(a.layer, a.token, a.images)
    print(
        f"layer {a.layer} (0-based), token {a.token}, {len(rows['resid_post']):,} rows of {a.images:,} pictures; ",
        end="",
    )
    print(f"load {os.getloadavg()[0]:.1f}\n")
    print("| dtype | site | d | codec | ratio | encode GB/s | decode GB/s | ratio advised by |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for dtype in DTYPES:
        for site, values in rows.items():
            whole = stored(values[: len(values) // CHUNK * CHUNK], dtype)
            chunks = list(whole.reshape(-1, CHUNK, whole.shape[1]))[:8]
            for codec in CODECS:
                head = f"| {dtype} | {site} | {whole.shape[1]} | {codec} |"
                if codec == "none":
                    print(f"{head} 1.00 | | | |")
                    continue
                ratio, encode, decode = measure(chunks, codec, a.repeats)
                print(f"{head} {ratio:.2f} | {encode:.2f} | {decode:.2f} | {MEASURED[dtype, site][codec].ratio:.2f} |")


if __name__ == "__main__":
    main()
