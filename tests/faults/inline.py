"""The stages up to the maps in this process, without a cluster; what readers find in what they and training write."""

import functools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline import executor
from pipeline.checkpoints import load_checkpoint, load_model_tensors, save_checkpoint, save_model
from pipeline.columns import ColumnReader
from pipeline.params import DaskParams, Params
from pipeline.shard_reader import ShardReader
from pipeline.store import code_digest
from stages import importance, manifest, shards
from tests.conftest import Small


class Future:
    """A task that was done when it was handed over."""

    def __init__(self, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.key, self.status, self._error = str(id(self)), "finished", None
        try:
            work(*arguments)
        except Exception as error:
            self.status, self._error = "error", error

    def exception(self) -> Exception | None:
        return self._error

    def release(self) -> None:
        pass


class Futures(list[Future]):
    """dask.distributed.as_completed."""

    add = list.append

    def __iter__(self) -> Iterator[Future]:
        while self:
            yield self.pop(0)


def use_no_cluster(patch: pytest.MonkeyPatch) -> None:
    """Lets make_missing do its tasks in this process, one after another; sources are digested once."""
    import dask.distributed

    client = SimpleNamespace(
        scheduler=SimpleNamespace(address="here"),
        wait_for_workers=lambda count, timeout: None,
        run=lambda function, *arguments: {"here": function(*arguments)},
        nthreads=lambda: {"here": 1},
        submit=lambda work, *arguments, pure: Future(work, arguments),
    )

    @contextmanager
    def connect(params: DaskParams, num_tasks: int) -> Iterator[Any]:
        yield client

    digest = functools.cache(code_digest)
    patch.setattr(executor, "connect", connect)
    patch.setattr(dask.distributed, "as_completed", Futures)
    for module in (executor, manifest, shards, importance):
        patch.setattr(module, "code_digest", digest)


def small_params(shipped: Params, small: Small) -> Params:
    """For `write_labels`; three pictures to a shard, scores by gradient."""
    columns = {"path_column": "file", "score_columns": ["stars"], "split_column": "part"}
    chosen = replace(shipped.manifest, csv_file=str(small.root / "labels.csv"), max_reject_frac=0.2, **columns)
    three = replace(shipped.shards, samples_per_shard=3)
    return replace(shipped, dataset="csv", manifest=chosen, shards=three, selection="gradient")


def write_labels(small: Small) -> None:
    """pictures/labels.csv, beside the pictures."""
    lines = [f"{one.path},{one.target[0]},{one.split}" for one in small.listing.pictures]
    (small.root / "labels.csv").write_text("\n".join(["file,stars,part", *lines]) + "\n")


def copy_data(small: Small, folder: Path, *names: str) -> None:
    for name in names:
        shutil.copytree(small.data / name, folder / "data" / name)


def save_small_model(folder: Path, value: float) -> None:
    """A model all of whose parameters have one value."""
    model = torch.nn.Linear(30, 2)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, value)
    save_model(folder, model.state_dict(), {"backbone": f"value {value:g}", "num_outputs": 2})


def read_small_model(folder: Path) -> object:
    if not folder.is_dir():
        return None
    tensors, config = load_model_tensors(folder)
    return {name: tensor.tolist() for name, tensor in tensors.items()}, config["backbone"], config["num_outputs"]


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
    pixels = reader.read_picture(key).tobytes() if {"jpg", "npy"} & members.keys() else b""
    return reader.shard_of(key), members, pixels


def read_scores(folder: Path, pictures: Path) -> dict[str, bytes] | None:
    """Key -> scores of a column."""
    if not folder.is_dir():
        return None
    reader = ShardReader(pictures)
    column = ColumnReader(folder, reader)
    return {key: column.read_importance(key, 28).tobytes() for key in reader}
