"""Columns whose images take seconds each: shards made in blocks, which the store keeps, and joined.

What is stopped or killed loses a block per worker at most.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from charm.runtime.disk import fingerprint
from pipeline.settings.params import DaskParams
from pipeline.shards.read import ShardReader
from pipeline.shards.write import write_shard
from pipeline.work.executor import Job, make_missing
from pipeline.work.store import read_sidecar, store_folder

BLOCK = 64  # images


def make_in_blocks(kind: str, jobs: list[Job], work: Callable[..., None], dask: DaskParams) -> dict[str, Path]:
    """Does pipeline.work.executor.make_missing in blocks of the images start to stop - 1 of a shard.

    `work` is called as work(*arguments, (start, stop), target).
    """
    if max((job.images for job in jobs), default=0) <= BLOCK:
        return make_missing(kind, [replace(job, arguments=(*job.arguments, (0, None))) for job in jobs], work, dask)
    missing = [job for job in jobs if read_sidecar(store_folder(kind) / f"{job.fingerprint}.json") is None]
    blocks = {job.name: split_job(job) for job in missing}
    made = make_missing(f"{kind}_blocks", [block for some in blocks.values() for block in some], work, dask)
    paths = {job.name: [str(made[block.name].with_suffix("")) for block in blocks.get(job.name, [])] for job in jobs}
    return make_missing(kind, [replace(job, arguments=(paths[job.name],)) for job in jobs], join_blocks, dask)


def split_job(job: Job) -> list[Job]:
    """Lists the blocks of a shard."""
    spans = [(start, min(start + BLOCK, job.images)) for start in range(0, job.images, BLOCK)]
    return [
        Job(
            f"{job.name}, images {start} to {stop - 1}",
            fingerprint("block", job.fingerprint, start, stop),
            (*job.arguments, (start, stop)),
            images=stop - start,
        )
        for start, stop in spans
    ]


def join_blocks(blocks: list[str], target: Path) -> None:
    """Joins shards, paths without an ending in order, into one, byte for byte as if it had been made at once."""
    readers = [ShardReader(Path(block).parent, Path(block).name) for block in blocks]
    samples = (
        (key, {end: reader.read(key, end) for end in reader.extensions(key)}) for reader in readers for key in reader
    )
    write_shard(target, samples, source=readers[0].sources[Path(blocks[0]).name])
