"""Pack the pictures, byte for byte, with their labels into WebDataset shards."""

from pathlib import Path

from pipeline.executor import Job, make_missing
from pipeline.manifest import read_manifest
from pipeline.params import Params
from pipeline.shards import pack_shard
from pipeline.store import code_digest, fingerprint, publish_shards
from stages import run_stage

OUT = Path("data/shards")


def main(params: Params) -> None:
    manifest = read_manifest(Path("data/manifest"))
    settings = params.shards
    columns = ["key", "name", "path", "extension", "sha256", "raw_height", "raw_width", "height", "width", "target"]
    code = code_digest("pipeline.shards", "pipeline.images")
    jobs: list[Job] = []
    for start in range(0, len(manifest.table), settings.samples_per_shard):
        rows = manifest.table.select(columns).slice(start, settings.samples_per_shard).to_pylist()
        name = f"shard-{len(jobs):06d}"
        arguments = (rows, manifest.facts["root"], settings.jpeg_quality)
        jobs.append(Job(name, fingerprint("shards", code, rows, settings.jpeg_quality), arguments))
    made = make_missing("shards", jobs, pack_shard, params.dask)
    publish_shards(made, OUT)


if __name__ == "__main__":
    run_stage(main)
