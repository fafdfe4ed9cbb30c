"""Copies shards to an object store as README says, and reads them there: moto stands for S3, on this machine.

    uv run --extra s3 --with "moto[server]" python -m tests.benchmarks.object_store [data]

`data`: a folder that holds shards/. Prints how many samples were read, and the requests' time beside the disk's.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec

from pipeline.shards.read import ShardReader

BUCKET = "charm"


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(port)
        store = fsspec.filesystem("s3")
        store.mkdir(BUCKET)
        start = time.perf_counter()
        store.put(str(folder / "shards"), f"{BUCKET}/data/shards", recursive=True)
        print(f"copied in {time.perf_counter() - start:.1f} s")
        local, remote = ShardReader(folder / "shards"), ShardReader(f"s3://{BUCKET}/data/shards")
        seconds = {}
        for name, reader in (("disk", local), ("store", remote)):
            start = time.perf_counter()
            found = {key: [reader.read(key, end) for end in reader.extensions(key)] for key in reader}
            seconds[name] = (time.perf_counter() - start) / len(found)
            if name == "disk":
                expected = found
        assert found == expected
        print(
            f"{len(found)} samples are equal; ms a sample:", {name: round(1e3 * of, 2) for name, of in seconds.items()}
        )
    finally:
        server.kill()


def wait_for(port: int) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError("moto does not start")


if __name__ == "__main__":
    main()
