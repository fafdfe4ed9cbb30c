"""Checkpoints: safetensors + JSON in a folder that is there whole or not at all. Nothing is pickled."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import UserError
from pipeline.store import file_sha256, fingerprint, write_json

_KEPT = 2  # finished checkpoints; an older one stands in if the newest is damaged


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Writes folder/step-<step>/ and removes all but the newest two."""
    target = folder / f"step-{step:09d}"
    aside = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    _save_tensors(tensors, aside / "tensors.safetensors")
    digests = [file_sha256(aside / "tensors.safetensors"), fingerprint(state)]
    write_json(aside / "state.json", {"state": state, "sha256": digests})
    shutil.rmtree(target, ignore_errors=True)
    os.replace(aside, target)
    for old in sorted(folder.glob("step-*"))[:-_KEPT]:
        shutil.rmtree(old)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint that is whole; None if there is none."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            written = json.loads((path / "state.json").read_bytes())
            state: dict[str, Any] = written["state"]
            if [file_sha256(path / "tensors.safetensors"), fingerprint(state)] == written["sha256"]:
                return load_file(path / "tensors.safetensors"), state
        except (OSError, ValueError, LookupError, TypeError):
            pass
        print(f"{path}: damaged, an older checkpoint is used", flush=True)
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state under flat names, `optimizer.<parameter index>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undoes `optimizer_tensors`; the parameter groups stay as they were built."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, field = name.split(".", 2)
            state.setdefault(int(index), {})[field] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_model(folder: Path, model: torch.nn.Module, config: dict[str, Any]) -> None:
    """Writes model.safetensors and model.json, which says how to build the model."""
    folder.mkdir(parents=True, exist_ok=True)
    _save_tensors(model.state_dict(), folder / "model.safetensors")
    write_json(folder / "model.json", config | {"sha256": file_sha256(folder / "model.safetensors")})


def load_model_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Undoes `save_model`.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        config = json.loads((folder / "model.json").read_bytes())
        if file_sha256(folder / "model.safetensors") != config["sha256"]:
            raise ValueError("model.safetensors is not the file that model.json describes")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder}: the model is missing or damaged ({error}); run dvc repro") from error
    return load_file(folder / "model.safetensors"), config


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
