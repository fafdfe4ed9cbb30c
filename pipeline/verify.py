"""Checks everything that the stages have made and would read: is it whole, and does it belong together?"""

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from charm.hub import MODEL_FILES
from charm.runtime.errors import UserError, format_count
from pipeline.manifest.table import read_manifest
from pipeline.pos_embeds.axes import PosEmbeds, read_area
from pipeline.settings.params import Params
from pipeline.shards.columns import ColumnReader, read_column_facts
from pipeline.shards.folders import open_folder
from pipeline.shards.read import ShardReader, read_shard_sidecars
from pipeline.shards.write import describe_tar
from pipeline.training.publish import read_trained
from pipeline.work.store import damaged, remake


@dataclass(frozen=True)
class Checked:
    """place: a folder; found: what is in it, or what is wrong with it; whole: whether all is well."""

    place: Path
    found: str
    whole: bool


def verify(params: Params, full: bool, data: Path = Path("data"), runs: Path = Path("runs")) -> Iterator[Checked]:
    """Checks each folder that is there; if `full`, reads every byte of every shard, too."""
    manifest, images = data / "manifest", data / "shards"
    checks: list[tuple[Path, Callable[[Path], str]]] = [
        (manifest, _check_manifest),
        (images, lambda folder: _check_images(folder, manifest, full)),
        (data / "importance", lambda folder: _check_column(folder, images, full)),
        (data / "features", lambda folder: _check_column(folder, images, full)),
        (data / "pos_embeds", lambda folder: _check_pos_embeds(folder, params.backbone)),
        (runs / "train", _check_model_folder),
        (runs / "evaluate", lambda folder: _check_predictions(folder, manifest)),
        (runs / "evaluate" / "model", _check_model_folder),
    ]
    for place, check in checks:
        is_made = place.is_dir() or (place.name == "model" and place.parent.is_dir())  # by the stage `evaluate`
        if is_made:
            try:
                yield Checked(place, check(place), whole=True)
            except UserError as error:
                yield Checked(place, str(error), whole=False)


def _check_manifest(folder: Path) -> str:
    facts = read_manifest(folder).facts
    return f"{facts.listed} listed = {facts.packed} packed + {sum(facts.rejected.values())} rejected"


def _check_images(folder: Path, manifest: Path, full: bool) -> str:
    reader = ShardReader(folder)
    listed, packed = set(read_manifest(manifest).keys), set(reader)
    if listed != packed:
        raise UserError(
            f"{len(listed - packed)} keys of the manifest are missing, {len(packed - listed)} are not in it, for "
            f"example {min(listed ^ packed)}; run dvc repro"
        )
    return _count_samples(folder, reader, full)


def _check_column(folder: Path, images: Path, full: bool) -> str:
    if read_column_facts(folder)["map"] is None:
        return "none is needed"
    reader = ShardReader(images)
    ColumnReader(folder, reader)  # has the same samples in the same shards
    return _count_samples(folder, reader, full)


def _count_samples(folder: Path, reader: ShardReader, full: bool) -> str:
    """Reads every byte if `full`, and compares what the tar holds with what its sidecar says."""
    for name, sidecar in read_shard_sidecars(open_folder(folder)) if full else ():
        path = folder / f"{name}.tar"
        try:
            found = describe_tar(path)
        except (OSError, ValueError, tarfile.TarError) as error:
            raise UserError(f"{path}: damaged ({error}); {remake(path)}") from error
        for fact, value in found.items():
            if sidecar[fact] != value:
                raise UserError(f"{path}: its {fact} is not what its sidecar says; {remake(path)}")
    read = ", every byte read" if full else ""
    return f"{format_count(len(reader), 'sample')} in {format_count(len(reader.shards), 'shard')}{read}"


def _check_pos_embeds(folder: Path, backbone: str) -> str:
    PosEmbeds(folder, backbone)
    read_area(folder)
    return "position embeddings"


def _check_predictions(folder: Path, manifest: Path) -> str:
    path = folder / "predictions.parquet"
    try:
        keys = pq.read_table(path, page_checksum_verification=True)["key"].to_pylist()
        path = folder / "metrics.json"
        scored = json.loads(path.read_bytes())["scored"]
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError) as error:
        raise damaged(path, error) from error
    expected = read_manifest(manifest).of_split("test").keys
    if keys != expected or scored != len(keys):
        raise UserError(
            f"{folder}: {len(keys)} predictions, {scored} scored, {len(expected)} test images; run dvc repro"
        )
    return f"{len(keys)} predictions"


def _check_model_folder(folder: Path) -> str:
    saved = read_trained(folder)
    for name in MODEL_FILES:
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: No such file or directory; run dvc repro")
        if not path.stat().st_size:
            raise UserError(f"{path} is empty; {remake(path)}")
    return f"{saved.config.model.backbone}, {sum(tensor.numel() for tensor in saved.tensors.values()):,} parameters"
