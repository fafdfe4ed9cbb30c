"""Make the selected importance map of every picture, one column shard beside each picture shard.

Run as `python -m stages.importance [map]`.
"""

import sys
from dataclasses import asdict
from pathlib import Path

from pipeline.executor import Job, make_missing
from pipeline.folders import open_folder
from pipeline.maps import MAP_CODE, make_column
from pipeline.params import Params
from pipeline.shard_reader import read_shard_sidecars
from pipeline.store import code_digest, fingerprint, publish_shards, write_record
from stages import run_stage

PICTURES = Path("data/shards")


def main(params: Params) -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else params.selection
    out = Path("data/importance") / name
    settings = asdict(getattr(params.importance, name))
    if name in ("frequency", "gradient", "entropy"):
        settings["fit"] = params.tokens.fit
    made: dict[str, Path] = {}
    if name == "random":
        print("random: needs no map")
    else:
        code = code_digest("pipeline.maps", "pipeline.headers", "pipeline.images", *MAP_CODE[name])
        jobs = [
            Job(shard, fingerprint(name, settings, code, sidecar["sha256"]), (str(PICTURES), shard, name, settings))
            for shard, sidecar in read_shard_sidecars(open_folder(PICTURES))
        ]
        made = make_missing(name, jobs, make_column, params.dask)
    publish_shards(made, out)
    write_record(out / "column.json", {"map": name, "settings": settings})


if __name__ == "__main__":
    run_stage(main)
