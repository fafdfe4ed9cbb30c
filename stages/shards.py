"""Pack the images, byte for byte, with their labels into WebDataset shards."""

from pathlib import Path
from typing import Any

from charm.runtime.disk import fingerprint
from pipeline.manifest.table import read_manifest
from pipeline.settings.params import Params
from pipeline.shards.write import choose_member, pack_shard
from pipeline.work.code import code_digest, own_closure
from pipeline.work.executor import Job, make_missing
from pipeline.work.store import publish_shards
from stages import run_stage

OUT = Path("data/shards")


def main(params: Params) -> None:
    manifest = read_manifest(Path("data/manifest"))
    settings = params.shards
    columns = ["key", "name", "path", "extension", "bytes", "sha256", "split", "target", "notes"]
    columns += ["raw_height", "raw_width", "height", "width"]
    member = choose_member(manifest.table.select(columns).to_pylist(), settings.encoding)
    score_range = list(manifest.facts.score_range)
    code = code_digest("pipeline.shards.write", *own_closure("charm.images.decode"))
    jobs: list[Job] = []
    for start in range(0, len(manifest.table), settings.samples_per_shard):
        rows = manifest.table.select(columns).slice(start, settings.samples_per_shard).to_pylist()
        name = f"shard-{len(jobs):06d}"
        made_from = fingerprint("shards", code, rows, member, settings.jpeg_quality, score_range)
        root = str(Path(manifest.facts.root).resolve())
        arguments = (rows, root, member, settings.jpeg_quality, score_range)
        size = sum(_expected_bytes(row, settings.encoding) for row in rows)
        jobs.append(Job(name, made_from, arguments, size, len(rows)))
    made = make_missing("shards", jobs, pack_shard, params.dask)
    publish_shards(made, OUT)


def _expected_bytes(row: dict[str, Any], encoding: str) -> int:
    """Returns the most bytes that a sample takes in the tar; an image that is resized takes less."""
    return 2048 + int(row["bytes"] if encoding == "jpeg" else 3 * row["height"] * row["width"])


if __name__ == "__main__":
    run_stage(main)
