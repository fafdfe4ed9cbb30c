"""Checkpoints: exact, whole or not at all, and nothing in them can be executed."""

import copy
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from charm.runtime.errors import UserError
from pipeline.training import state
from pipeline.training.state import load_checkpoint, save_checkpoint


def build() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 1))


def save(folder: Path, step: int) -> None:
    tensors = {"model.weight": torch.full((2, 3), float(step))}
    save_checkpoint(folder, tensors, {"step": step, "history": [{"loss": 0.1 + step}]})


def loaded_step(folder: Path) -> int | None:
    loaded = load_checkpoint(folder)
    if loaded is None:
        return None
    step = loaded[1]["step"]
    assert torch.equal(loaded[0]["model.weight"], torch.full((2, 3), float(step)))
    return int(step)


def test_round_trip_of_values_and_state(tmp_path: Path) -> None:
    tensors = {
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "count": torch.tensor(7),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "learnt": nn.Parameter(torch.ones(2)),
    }
    state = {"history": [{"val_srcc": float("nan"), "loss": 0.1}], "step": 5}
    save_checkpoint(tmp_path, tensors, copy.deepcopy(state))
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded[0].keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(loaded[0][name], value.detach())
        assert loaded[0][name].dtype == value.dtype
    assert json.dumps(loaded[1], sort_keys=True) == json.dumps(state, sort_keys=True)  # nan is not equal to itself


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 9, 9, 8):  # in the order in which they were saved
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000000004", "checkpoint-000000005"]
    assert loaded_step(tmp_path) == 8


def test_nothing_but_safetensors_and_json(tmp_path: Path) -> None:
    save(tmp_path, 1)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert not any(b"\x80\x02" in path.read_bytes()[:2] for path in files)  # the first bytes of a pickle


def test_none_is_no_error(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_a_writer_that_is_killed_at_any_moment_leaves_a_checkpoint(
    before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before each operation in turn; what is found is the newest one but one, or the newest."""
    for moment in range(100):
        folder = tmp_path / str(moment)
        for step in range(1, before + 1):
            save(folder, step)
        left = [moment]

        def may_stop(function: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
            def operation(*arguments: Any, **keywords: Any) -> Any:
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1
                return function(*arguments, **keywords)

            return operation

        with monkeypatch.context() as patch:
            for module, name in ((os, "fsync"), (os, "replace"), (shutil, "rmtree"), (state, "save_file")):
                patch.setattr(module, name, may_stop(getattr(module, name)))
            patch.setattr(Path, "mkdir", may_stop(Path.mkdir))
            try:
                save(folder, before + 1)
                break
            except KeyboardInterrupt:
                pass
        assert loaded_step(folder) in ({before, before + 1} if before else {None, 1})
        save(folder, 77)  # and the next one is not in its way
        assert loaded_step(folder) == 77
        assert not list(folder.glob(".*"))
    assert 7 <= moment < 99


def test_a_full_disk_is_said_in_one_line_and_costs_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, limits[1]))  # bytes of a file
    try:
        with pytest.raises(
            UserError, match=r"a checkpoint cannot be written \(.*\); the one before it is kept"
        ) as error:
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert loaded_step(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000001"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_damaged_newest_gives_way_to_the_older(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / "checkpoint-000000002" / name
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        loaded = load_checkpoint(tmp_path)
        assert loaded is not None
        # A flipped bit of the layout of a JSON file may leave its values as they were.
        assert loaded[1] in ({"step": 1, "history": [{"loss": 1.1}]}, {"step": 2, "history": [{"loss": 2.1}]})
        assert torch.equal(loaded[0]["model.weight"], torch.full((2, 3), float(loaded[1]["step"])))
        assert loaded[1]["step"] == 1 or name == "state.json"
    assert f"{path.parent}: damaged, an older checkpoint is used" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "removed", "state of another kind"])
def test_all_damaged(damage: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = tmp_path / "checkpoint-000000001"
    if damage == "cut":
        (path / "tensors.safetensors").write_bytes((path / "tensors.safetensors").read_bytes()[:-1])
    elif damage == "removed":
        (path / "state.json").unlink()
    else:
        (path / "state.json").write_text("[1, 2]")
    assert load_checkpoint(tmp_path) is None
