"""A server under load: 16 clients at once, then what it must refuse.

    uv run python -m tests.benchmarks.serve [images]

A model of random weights (charm_demo, l = 512) on a free port of the loopback, in a process of its own; 320 images of
640 x 480 unless told otherwise, one a request. Ends by itself.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import simplejpeg

from charm.images.decode import decode_image
from charm.scorer import CharmScorer
from tests.charm.app.conftest import build_scorer
from tests.conftest import ROOT, draw_image
from tests.faults.bombs import REFUSED

CLIENTS, IMAGES, DIFFERENT = 16, 320, 20
HEIGHT, WIDTH = 480, 640


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    scorer = build_scorer(max_seq_len=512)
    data = [simplejpeg.encode_jpeg(draw_image(HEIGHT, WIDTH, seed), quality=90) for seed in range(DIFFERENT)]
    with tempfile.TemporaryDirectory() as folder:
        scorer.save_pretrained(folder)
        with serving(folder) as address:
            ask_one(address, data[0])  # starts a child process for decoding
            report_load(address, data, count, scorer)
            report_refusals(address)
            found = get_metrics(address)
    print(f"| peak memory after all of this | {found['peak_memory_mb']:.0f} MB |")


@contextmanager
def serving(folder: str) -> Iterator[str]:
    """`charm serve` of a model's folder; gives its address."""
    command = [sys.executable, "-m", "charm.app.command", "serve", "--model", folder, "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split(" at ")[1].split()[0]
        try:
            while not answers(address):
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()


def answers(address: str) -> bool:
    try:
        return connect(address).get("/health").is_success
    except httpx.ConnectError:
        return False


def connect(address: str) -> httpx.Client:
    return httpx.Client(base_url=address, timeout=300, trust_env=False)


def get_metrics(address: str) -> dict[str, Any]:
    with connect(address) as client:
        found: dict[str, Any] = client.get("/metrics", headers={"Accept": "application/json"}).json()
    return found


def ask_one(address: str, data: bytes) -> tuple[float, float]:
    """The score of an image, and the seconds until it came, a new connection included."""
    started = time.perf_counter()
    with connect(address) as client:
        reply = client.post("/score", files={"image": ("a.jpg", data)})
    return reply.raise_for_status().json()["scores"][0]["score"], time.perf_counter() - started


def report_load(address: str, data: list[bytes], count: int, scorer: CharmScorer) -> None:
    before, started = get_metrics(address), time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as threads:
        replies = list(threads.map(lambda number: ask_one(address, data[number % DIFFERENT]), range(count)))
    seconds = time.perf_counter() - started
    after = get_metrics(address)
    scores, latencies = np.array(replies).T
    alone = np.array([score.score for score in scorer([decode_image(one).pixels for one in data])])  # type: ignore[union-attr]
    batches = after["batches"] - before["batches"]
    print(f"| {CLIENTS} clients, {count} images of {WIDTH} x {HEIGHT} | |\n|---|---|")
    print(f"| answered | {len(replies)} |")
    print(f"| largest difference to scoring alone | {np.abs(scores - alone[np.arange(count) % DIFFERENT]).max():.1e} |")
    print(f"| images a second | {count / seconds:.1f} |")
    print(f"| latency, median and 95 % | {np.median(latencies):.2f} s, {np.quantile(latencies, 0.95):.2f} s |")
    print(f"| images in a batch, mean and most | {count / batches:.2f}, {after['largest_batch']} |")
    print(f"| peak memory | {after['peak_memory_mb']:.0f} MB |")


def report_refusals(address: str) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    refused: dict[str, dict[str, Any]] = {
        "a bomb": {"files": {"image": ("bomb.png", REFUSED["PNG, 100 megapixels in 1 kB"])}},
        "a body of 100 MB, by its header": {"files": {"image": ("large.jpg", bytes(100_000_000))}},
        "a body of 100 MB without a length": {"content": stream_form(100), "headers": form},
        "a text file": {"files": {"image": ("notes.txt", b"this is no image")}},
        "10,000 files": {"files": [("image", (f"{index}.jpg", b"x")) for index in range(10_000)]},
    }
    for name, request in refused.items():
        with connect(address) as client:
            started = time.perf_counter()
            reply = client.post("/score", **request)
            seconds = time.perf_counter() - started
        body = reply.json()
        error = body["error"] if "error" in body else body["scores"][0]["error"]
        print(f"| {name} | {reply.status_code} in {seconds:.2f} s: {error['message']} |")


def stream_form(megabytes: int) -> Iterator[bytes]:
    yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    for _ in range(megabytes):
        yield bytes(1_000_000)


if __name__ == "__main__":
    main()
