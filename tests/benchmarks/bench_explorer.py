"""How fast the explorer answers: `python tests/benchmarks/bench_explorer.py [--features 65536 --rows 1280000]`.

The run is made up: a store of that many images with thumbnails of 1.5 kB, an SAE on 64 inputs, codes written straight
in the format of features.zarr with the shape of the post's (`bench_statistics.made_up`: about 30 a row), and the
statistics that `stats` computes from them. Then the real command starts; `first` is the first answer to each kind of
page, which may have to read arrays; after those, 8 clients ask for pages drawn at random, each kind as often, with
connections kept open. Times are as a client sees them, on the same machine; bytes are of the body.
"""

import argparse
import hashlib
import http.client
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import zarr
from bench_statistics import made_up
from thresher.analysis.by_feature import write_by_feature
from thresher.analysis.encoded_block import EncodedBlock
from thresher.analysis.explorer.app import chapters
from thresher.analysis.features import TRAIN, FeaturesInfo, read_entries
from thresher.analysis.options import StatsOptions
from thresher.analysis.quality import write_sections
from thresher.analysis.row_columns import RowColumns
from thresher.analysis.section_table import SectionTable
from thresher.analysis.stats import stats
from thresher.progress import Reporter
from thresher.store.reader import open_store

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from explored import make_explored_run

N_CLASSES, D_IN, N_CLIENTS = 1000, 64, 8


def make(folder: Path, n_features: int, n_rows: int) -> Path:
    """Make the run, in `folder/run`."""
    made = make_explored_run(
        folder,
        n_features=n_features,
        n_images=n_rows,
        d_in=D_IN,
        n_labels=min(N_CLASSES, n_features // 4),
        unreadable=(),
        unlabelled=(),
        picture_px=64,
        options=None,
    )
    store = open_store(made.store_path)
    group = zarr.open_group(str(made.path / "features.zarr"), mode="w", zarr_format=3)
    columns, sections = RowColumns(group, n_rows), SectionTable.of_store(n_rows, 1, None)
    n_active, nnz = np.zeros(n_features, np.int64), 0
    for first, indptr, index, value in made_up(n_rows, n_features):
        counts = np.diff(indptr)
        ones = np.ones(len(counts))
        split = np.full(len(counts), TRAIN, np.uint8)
        block = EncodedBlock(
            counts=counts,
            index=index,
            value=value,
            x=np.ones((len(counts), D_IN), np.float32),
            norm=ones,
            sse=ones,
            cosine=ones.astype(np.float32),
            l1=ones,
        )
        columns.append(split, store.labels(first, first + len(counts)), block)
        sections.add(first, split, block)
        n_active += np.bincount(index, minlength=n_features)
        nnz += len(index)
    columns.close()
    write_sections(group, sections.arrays())
    info = FeaturesInfo(
        n_rows=n_rows,
        n_encoded=n_rows,
        n_train=n_rows,
        n_held_out=0,
        n_unreadable=0,
        nnz=nnz,
        d_in=D_IN,
        d_sae=n_features,
        split="all",
        row_start=0,
        row_stop=n_rows,
        held_out_start=None,
        store=str(made.store_path),
        store_fingerprint=store.fingerprint,
        n_store_parts=1,
        is_training_store=True,
        site=store.sites[0].path,
        sae_sha256=hashlib.sha256((made.path / "sae.safetensors").read_bytes()).hexdigest(),
        thresher="0",
    )
    with Reporter().task("", 0, "") as task:
        write_by_feature(group, made.path, n_active, n_rows, read_entries(group, info), task)
    group.attrs.update(info.to_attributes())
    stats(made.path, StatsOptions(figures=False))
    return made.path


def kinds(n_features: int, n_rows: int, n_labels: int) -> dict[str, str]:
    """Name of each kind of page -> its path, with `{number}` of so many where it has one."""
    most = {"feature": n_features, "row": n_rows, "label": n_labels, "neuron": 0}
    found = {"thumbnail": f"/t/{{{n_rows}}}"}
    for chapter in chapters():
        for page in chapter.pages:
            path = re.sub(r"{(\w+):int}", lambda match: f"{{{most[match[1]]}}}", page.path)
            if "{0}" in path:
                continue
            found[page.name] = path
            found[f"{page.name}, JSON"] = "/index.json" if path == "/" else f"{path}.json"
    return found | {
        "features, sorted": "/features?sort=density",
        "features, searched": "/features?q=class",
    }


def address(path: str, rng: random.Random) -> str:
    return re.sub(r"{(\d+)}", lambda match: str(rng.randrange(int(match[1]))), path)


def ask(connection: http.client.HTTPConnection, path: str) -> tuple[float, int, int]:
    """Seconds, status and bytes of one answer."""
    start = time.perf_counter()
    connection.request("GET", path)
    answer = connection.getresponse()
    n_bytes = len(answer.read())
    return time.perf_counter() - start, answer.status, n_bytes


def visit(port: int, found: dict[str, str], n_requests: int) -> dict[str, list[tuple[float, int, int]]]:
    """What each kind answered to 8 clients."""
    answers: dict[str, list[tuple[float, int, int]]] = {name: [] for name in found}

    def client(number: int) -> None:
        rng = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for _ in range(n_requests // N_CLIENTS):
            name = rng.choice(list(found))
            answers[name].append(ask(connection, address(found[name], rng)))

    clients = [threading.Thread(target=client, args=(number,)) for number in range(N_CLIENTS)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    return answers


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has taken."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    """Peak resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6  # type: ignore[index]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 rows of 512 features, 80 requests")
    parser.add_argument("--features", type=int, default=65_536)
    parser.add_argument("--rows", type=int, default=1_280_000)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--work", type=Path, help="where the run is made, and left for the next time")
    options = parser.parse_args()
    if options.quick:
        options.features, options.rows, options.requests = 512, 2000, 160
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "run"
        if not (path / "stats.json").exists():
            make(folder, options.features, options.rows)
        command = [sys.executable, "-m", "thresher", "explore", str(path), "--no-browser", "--quiet", "--port", "0"]
        start = time.perf_counter()
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            match = re.search(r":(\d+)/", said)
            assert match, said
            port = int(match[1])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            found = kinds(options.features, options.rows, min(N_CLASSES, options.features // 4))
            first = {"overview": ask(connection, "/")}
            start_up, start_up_cpu = time.perf_counter() - start, cpu_s(server.pid)
            rng = random.Random(99)
            first |= {n: ask(connection, address(at, rng)) for n, at in found.items() if n != "overview"}
            before, cpu = time.perf_counter(), cpu_s(server.pid)
            answers = visit(port, found, options.requests)
            took, cpu = time.perf_counter() - before, cpu_s(server.pid) - cpu
            memory = peak_mb(server.pid)
        finally:
            server.terminate()
            server.wait(30)
    print(
        f"{options.features:,} features, {options.rows:,} rows; {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}\n"
        f"start-up to the first page {start_up:.2f} s ({start_up_cpu:.2f} s of CPU); peak memory {memory:.0f} MB; "
        f"{sum(map(len, answers.values()))} requests by {N_CLIENTS} clients in {took:.1f} s "
        f"({1e3 * cpu / sum(map(len, answers.values())):.1f} ms of CPU each); ms"
    )
    print(f"{'':24}{'first':>8}{'p50':>8}{'p95':>8}{'p99':>8}{'kB':>8}  statuses")
    for name, each in {**answers, "all": [one for some in answers.values() for one in some]}.items():
        seconds, statuses, n_bytes = zip(*each, strict=True) if each else ((0.0,), (), (0,))
        p50, p95, p99 = (1e3 * float(np.percentile(seconds, at)) for at in (50, 95, 99))
        cold = f"{1e3 * first[name][0]:8.1f}" if name in first else " " * 8
        counted = ", ".join(f"{status}: {statuses.count(status)}" for status in sorted(set(statuses)))
        print(f"{name:24}{cold}{p50:8.1f}{p95:8.1f}{p99:8.1f}{np.mean(n_bytes) / 1e3:8.1f}  {counted}")


if __name__ == "__main__":
    main()
