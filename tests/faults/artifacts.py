"""Small artifacts of every kind, and what readers find in them."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from charm.hub import read_model, write_model_folder
from charm.runtime.errors import UserError
from pipeline.settings.params import Params
from pipeline.shards.columns import ColumnReader
from pipeline.shards.read import ShardReader
from pipeline.training.state import load_checkpoint, save_checkpoint
from tests.conftest import Small
from tests.untrained import describe


def small_params(shipped: Params, small: Small) -> Params:
    """For `write_labels`; three images to a shard, scores by gradient."""
    columns = {"path_column": "file", "score_columns": ["stars"], "split_column": "part"}
    chosen = replace(shipped.manifest, max_reject_frac=0.2, **columns)
    three = replace(shipped.shards, samples_per_shard=3)
    labels = str(small.root / "labels.csv")
    return replace(shipped, dataset="csv", labels=labels, manifest=chosen, shards=three, selection="gradient")


def write_labels(small: Small) -> None:
    """images/labels.csv, beside the images."""
    lines = [f"{one.path},{one.target[0]},{one.split}" for one in small.listing.images]
    (small.root / "labels.csv").write_text("\n".join(["file,stars,part", *lines]) + "\n")


def copy_data(small: Small, folder: Path, *names: str) -> None:
    for name in names:
        shutil.copytree(small.data / name, folder / "data" / name)


def save_small_model(folder: Path, value: float) -> None:
    """A model all of whose parameters have one value."""
    model = torch.nn.Linear(30, 2)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, value)
    write_model_folder(folder, model.state_dict(), replace(describe(num_outputs=2), seed=int(100 * value)))


def read_small_model(folder: Path) -> object:
    if not folder.is_dir():
        return None
    try:
        saved = read_model(folder)
    except ValueError as error:  # as pipeline.training.publish turns it into a line for users
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error
    return {name: tensor.tolist() for name, tensor in saved.tensors.items()}, saved.config


def save_small_checkpoint(folder: Path, step: int) -> None:
    save_checkpoint(folder, {"model.weight": torch.full((20, 3), float(step))}, {"step": step})


def read_small_checkpoint(folder: Path) -> object:
    """The step of the newest checkpoint that is whole, and the values of its tensor."""
    loaded = load_checkpoint(folder)
    return loaded and (loaded[1]["step"], loaded[0]["model.weight"].unique().tolist())


def read_samples(folder: Path) -> dict[str, Any] | None:
    """Key -> shard, members and pixels of everything under a folder of shards; None if there is nothing."""
    if not folder.is_dir():
        return None
    reader = ShardReader(folder)
    return {key: _read_sample(reader, key) for key in reader} or None


def _read_sample(reader: ShardReader, key: str) -> tuple[Any, ...]:
    members = {extension: reader.read(key, extension) for extension in reader.extensions(key)}
    pixels = reader.read_image(key).tobytes() if {"jpg", "npy"} & members.keys() else b""
    return reader.shard_of(key), members, pixels


def read_scores(folder: Path, images: Path) -> dict[str, bytes] | None:
    """Key -> scores of a column."""
    if not folder.is_dir():
        return None
    reader = ShardReader(images)
    column = ColumnReader(folder, reader)
    return {key: column.read_importance(key, 28).tobytes() for key in reader}
