"""What a trained model was made for, written beside it and checked before it is used."""

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from charm.model.vit import CharmViT
from charm.runtime.errors import UserError
from pipeline.manifest.table import Manifest
from pipeline.settings.models import build_model, model_config
from pipeline.settings.params import Params
from pipeline.training.checkpoints import load_model_tensors


def describe_model(params: Params, manifest: Manifest) -> dict[str, Any]:
    """`model_config`, and besides what a trained model is only good for, and what it was made from and with."""
    return model_config(params, len(manifest.bins)) | {
        "labels": {"num_bins": len(manifest.bins), "score_range": manifest.facts["score_range"]},
        "tokens": asdict(params.tokens)
        | {"tokenizer": params.tokenizer, "selection": params.selection, "max_seq_len": params.max_seq_len},
        "data": {name: manifest.facts.get(name) for name in ("dataset", "sha256", "split_sha256")},
        "versions": {name: version(name) for name in ("torch", "timm", "numpy")},
    }


def load_trained(folder: Path, params: Params, manifest: Manifest) -> tuple[CharmViT, dict[str, Any]]:
    """The model of a folder that the stage `train` wrote, and its description.

    It may be scored on other data made with other versions, but not as another model, with other labels or tokens.

    Raises:
        UserError: missing, damaged, or made for something else: the fields that differ.
    """
    tensors, config = load_model_tensors(folder)
    wanted = describe_model(params, manifest)
    found, expected = (_flatten({name: one.get(name) for name in wanted}) for one in (config, wanted))
    differing = [
        f"{name} {found.get(name)!r} (here {value!r})"
        for name, value in expected.items()
        if found.get(name) != value and not name.startswith(("data.", "versions."))
    ]
    if differing:
        raise UserError(f"{folder}: the model was made for {', '.join(differing)}; run dvc repro")
    model = build_model(config, pretrained=False)
    model.load_state_dict(tensors)
    return model, config


def _flatten(config: dict[str, Any]) -> dict[str, Any]:
    """Sections as `section.key`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return flat
