"""Make the importance map that the input reads of every image, one column shard beside each image shard.

An input that reads none leaves an empty column. Maps that take seconds for an image are made in blocks of 64 images,
which are kept in the store: what is stopped or killed loses a block per worker at most.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from charm.runtime.disk import fingerprint
from charm.runtime.errors import UserError
from charm.saliency.weights import find_checkpoint, find_detector
from pipeline.importance.make import MAP_CODE, SLOW, make_block, make_column, try_tools, write_coverages
from pipeline.settings.inputs import sketch_tokenizer
from pipeline.settings.params import DaskParams, Params
from pipeline.shards.blocks import make_in_blocks
from pipeline.shards.folders import open_folder
from pipeline.shards.read import read_shard_sidecars
from pipeline.work.code import code_digest, own_closure
from pipeline.work.executor import Job, make_missing
from pipeline.work.store import publish_shards, read_sidecar, repository_path, store_folder, write_record
from stages import run_stage

IMAGES, OUT = Path("data/shards"), Path("data/importance")


def main(params: Params) -> None:
    name = sketch_tokenizer(params).reads
    facts: dict[str, Any] = {"map": name, "settings": {}}
    made: dict[str, Path] = {}
    if name is None:
        print(f"importance: the input {params.tokenizer} with selection {params.selection} reads no map")
    else:
        way, facts["settings"], places = choose_way(params, name)
        made = make_columns(name, way, facts["settings"], places, params.dask)
    publish_shards(made, OUT)
    if name == "saliency":
        facts |= {"backend": way} | write_coverages(OUT)
        print(f"saliency: nothing stands out in {facts['empty']} of {facts['images']} images")
    write_record(OUT / "column.json", facts)


def choose_way(params: Params, name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Returns how a map is made: a key of MAPS, the settings that decide its content, and where its tools are."""
    if name != "saliency":
        return name, asdict(getattr(params.importance, name)) | {"fit": params.tokens.fit}, {}
    section = params.importance.saliency
    if section.backend == "mbd":
        return "mbd", {}, {}
    settings = asdict(section.sam_hq)
    detector, checkpoint = settings.pop("detector"), settings.pop("sam_checkpoint")
    detector = str(repository_path(detector)) if repository_path(detector).is_dir() else detector
    checkpoint = checkpoint and str(repository_path(checkpoint))
    try:
        detector, settings["detector_sha256"] = find_detector(detector)
        checkpoint, settings["sam_sha256"] = find_checkpoint(settings["sam"], checkpoint, settings["sam_sha256"])
    except UserError as error:
        raise UserError(f"params.yaml: importance.saliency.sam_hq: {error}") from error
    places = {"sam_checkpoint": str(checkpoint), "detector": str(detector), "device": params.hardware.device}
    return "sam_hq", settings, places


def make_columns(
    name: str, way: str, settings: dict[str, Any], places: dict[str, Any], dask: DaskParams
) -> dict[str, Path]:
    """Makes the column shards that the store lacks; returns the path of each shard's sidecar there."""
    code = code_digest("pipeline.shards.write", *own_closure("charm.images.decode"), *MAP_CODE[way])
    given = settings | places
    jobs = []
    for shard, sidecar in read_shard_sidecars(open_folder(IMAGES)):
        made_from = fingerprint(way, settings, code, sidecar["images"])
        jobs.append(Job(shard, made_from, (str(IMAGES.resolve()), shard, way, given), images=sidecar["count"]))
    if any(read_sidecar(store_folder(name) / f"{job.fingerprint}.json") is None for job in jobs):
        try_tools(way, given)
    return make_in_blocks(name, jobs, make_block, dask) if way in SLOW else make_missing(name, jobs, make_column, dask)


if __name__ == "__main__":
    run_stage(main)
