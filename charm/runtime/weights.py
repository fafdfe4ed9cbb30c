"""Weights from files: read without running any code in them, and required to be exactly those of a model."""

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from charm.runtime.disk import file_sha256, name_impostor
from charm.runtime.errors import UserError

ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".npz")
# Parts that backbones do without here: classifiers, attention pooling, the token of masked pre-training.
_LEFT_OUT = ("head.", "head_dist.", "attn_pool.", "mask_token", "scale_embed")
_WRAPPERS = ("state_dict", "model")  # under which trainers put the weights beside other things


def load_backbone(backbone: nn.Module, path: Path, sha256: str | None) -> dict[str, Tensor]:
    """Fills a timm model from an .npz, a .safetensors file or a weights-only PyTorch file with timm's names, strictly.

    Position embeddings of another grid are refused, not resampled: timm has a name for each image size, and they
    would lose by being resampled twice. Names are turned into timm's by the model's `name_weights`, if it has one.

    Returns all tensors of the file. Raises UserError if the file is missing, holds no weights, has another checksum, or
    is of another backbone.
    """
    try:
        read = read_tensors(path)
        if sha256 and (own := file_sha256(path)) != sha256.lower():
            raise UserError(f"{path} has the sha256 {own}, and not checkpoint_sha256: {sha256}")
    except UserError as error:
        raise UserError(f"checkpoint: {error}") from error
    expected = backbone.state_dict()
    if name_weights := getattr(backbone, "name_weights", None):
        read = name_weights(read)
    elif "patch_embed.proj.weight" in expected:
        read = name_as_vit(read, expected["patch_embed.proj.weight"].shape[-1])
    classifier = (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier") or ()
    left_out = (*_LEFT_OUT, *(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier)))
    tensors = {name: value for name, value in read.items() if name in expected or not name.startswith(left_out)}
    if problems := describe_misfit(expected, tensors):
        raise UserError(
            f"checkpoint: {path} does not fit the backbone: {problems}; expected timm's names and shapes, "
            "those of the backbone's own image size"
        )
    backbone.load_state_dict(tensors)
    return read


def name_as_vit(tensors: dict[str, Tensor], patch_size: int) -> dict[str, Tensor]:
    """Returns the tensors of a NaFlexVit under the names and in the shapes of a plain ViT; others are unchanged."""
    named = {}
    for name, tensor in tensors.items():
        part = name.removeprefix("embeds.")
        if name == "embeds.proj.weight" and tensor[0].numel() % patch_size**2 == 0:
            # From (D, p * p * 3), as patches lie in memory.
            tensor = tensor.reshape(len(tensor), patch_size, patch_size, -1).permute(0, 3, 1, 2).contiguous()
        elif name == "embeds.pos_embed":
            tensor = tensor.reshape(1, -1, tensor.shape[-1])  # from (1, g, g, D)
        named[f"patch_embed.{part}" if name.startswith("embeds.proj.") else part] = tensor
    return named


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads tensors by name to the CPU, from a file of safetensors or torch.save; executes nothing.

    Raises UserError if the file is missing, damaged, of another kind, or holds anything but tensors and plain values.
    """
    try:
        if impostor := name_impostor(path):
            raise UserError(f"{path} is {impostor}")
        loaded = _load(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"{path}: expected names and tensors")
    return loaded


def _load(path: Path) -> Any:
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript; the error says it
            head = file.read(9)
            file.seek(0)
            if path.suffix == ".npz":
                with np.load(file, allow_pickle=False) as arrays:
                    return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}
            return load_file(path) if head[8:] == b"{" else torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of many kinds; the text of torch advises to let the file run code
        text = str(error)
        if "TorchScript" in text or (isinstance(error, UnpicklingError) and head.startswith((b"PK", b"\x80"))):
            asked = re.search(r"GLOBAL (\S+)", text)
            objects = "a program of TorchScript" if "TorchScript" in text else asked[1] if asked else "Python objects"
            raise UserError(
                f"{path} holds more than tensors ({objects}), which may run code, so nothing was loaded: "
                "expected its tensors alone, saved as .safetensors"
            ) from error
        problem = f"{path} is damaged, cut short, or no file of weights"
        raise UserError(f"{problem}: expected .safetensors, or tensors by torch.save") from error


def describe_misfit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Describes how tensors differ from those of a model in names and shapes; "" if they fit."""
    reshaped = [
        f"{name} is {list(found[name].shape)} and not {list(expected[name].shape)}"
        for name in expected.keys() & found.keys()
        if found[name].shape != expected[name].shape
    ]
    return list_problems(expected.keys() - found.keys(), found.keys() - expected.keys(), reshaped)


def list_problems(missing: Iterable[str], unexpected: Iterable[str], reshaped: Iterable[str]) -> str:
    """Describes tensors that do not fit a model: how many of each kind, and the first three names; "" if all fit."""
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    found = {kind: sorted(names) for kind, names in kinds.items()}
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in found.items()
        if names
    )
