"""What writing shards and maps costs: ratios to copying the same bytes with verification, and of two workers to one.

    uv run python -m tests.benchmarks.pack

The copy reads each file, compares its sha256, appends it to one file, flushes that to disk, reads it back and hashes
it; packing does the same and writes a tar with a sidecar. Maps are `gradient`, `frequency` and `entropy` of 1024 x 768
images at two coarse patch sizes, on one and on two Dask workers, cluster start excluded.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import simplejpeg

from pipeline.importance.make import make_column
from pipeline.settings.params import DaskParams
from pipeline.shards.write import pack_shard
from pipeline.work.executor import connect
from tests.benchmarks.loader import draw_photographs
from tests.benchmarks.timing import take_turns, time_call

PER_SHARD, ROUNDS = 64, 9


def main() -> None:
    data = [simplejpeg.encode_jpeg(image, quality=92) for image in draw_photographs()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write_files(data, folder)
        starts = range(0, len(rows), PER_SHARD)
        ways: dict[str, Callable[[], object]] = {
            "copy and verify": lambda: [copy(rows[i : i + PER_SHARD], folder, folder / f"{i}.bin") for i in starts],
            "pack": lambda: [
                pack_shard(rows[i : i + PER_SHARD], name, "jpg", 95, (0.0, 1.0), folder / f"{i}") for i in starts
            ],
        }
        megabytes = sum(map(len, data)) / 1e6
        speeds = {way: megabytes / seconds for way, seconds in take_turns(ways, ROUNDS).items()}
        for way, speed in speeds.items():
            print(f"{way}: {speed:.0f} MB/s")
        print(f"ratio {speeds['pack'] / speeds['copy and verify']:.2f}")

        for index, start in enumerate(range(0, len(rows), 16)):
            pack_shard(rows[start : start + 16], name, "jpg", 95, (0.0, 1.0), folder / f"shard-{index:06d}")
        for map_name in ("gradient", "frequency", "entropy"):
            one, two = (time_maps(folder, map_name, workers, len(rows) // 16) for workers in (1, 2))
            print(f"{map_name}: {len(rows) / one:.0f} images/s with one worker, ratio with two {one / two:.2f}")


def write_files(data: list[bytes], folder: Path) -> list[dict[str, object]]:
    """Manifest rows of the files, as pack_shard takes them."""
    rows: list[dict[str, object]] = []
    for index, one in enumerate(data):
        path = f"{index}.jpg"
        (folder / path).write_bytes(one)
        size = {"height": 768, "width": 1024, "raw_height": 768, "raw_width": 1024}
        facts = {"sha256": hashlib.sha256(one).hexdigest(), "extension": "jpg", "target": [0.5], "split": "train"}
        rows.append({"key": f"{index:08d}", "name": path, "path": path, "notes": [], **facts, **size})
    return rows


def copy(rows: list[dict[str, object]], folder: Path, target: Path) -> None:
    with open(target, "wb") as file:
        for row in rows:
            data = (folder / str(row["path"])).read_bytes()
            assert hashlib.sha256(data).hexdigest() == row["sha256"]
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    with open(target, "rb") as file:
        hashlib.file_digest(file, "sha256")


def time_maps(folder: Path, name: str, workers: int, shards: int) -> float:
    """Seconds for all shards."""
    settings = {"coarse_patch_sizes": [28, 56], "fit": "nearest"}
    with connect(DaskParams(address=None, workers=workers, memory="auto"), shards) as client:
        arguments = [(str(folder), f"shard-{index:06d}", name, settings) for index in range(shards)]
        warm_up = [(*a, folder / f"warm-{a[1]}") for a in arguments[:workers]]
        client.gather([client.submit(make_column, *a, pure=False) for a in warm_up])
        jobs = [(*a, folder / f"map-{a[1]}") for a in arguments]
        return time_call(lambda: client.gather([client.submit(make_column, *job, pure=False) for job in jobs]))


if __name__ == "__main__":
    main()
