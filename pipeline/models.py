"""Models from their description, and where they run."""

from pathlib import Path
from typing import Any

import torch

from charm.model import CharmViT
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.tokenizers import build_tokenizer
from pipeline.weights import load_backbone


def build_model(config: dict[str, Any], pretrained: bool) -> CharmViT:
    """The model that `model_config` describes."""
    try:
        return CharmViT(
            config["backbone"],
            pretrained=pretrained,
            num_scales=config["num_scales"],
            num_outputs=config["num_outputs"],
            head=config["head"],
            normalize=config["normalize"],
            train_pos_embed=config["pos_embed"] == "trainable",
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    except OSError as error:  # no network, no such repository
        raise UserError(
            f"the weights of {config['backbone']} cannot be downloaded ({error}); no network is needed when the hub's "
            "cache has them, or with checkpoint: or pretrained: false"
        ) from error


def start_model(params: Params, num_bins: int) -> CharmViT:
    """The model that training starts from: with the weights of `checkpoint`, or published ones, or none."""
    model = build_model(model_config(params, num_bins), params.pretrained and not params.checkpoint)
    if params.checkpoint:
        load_backbone(model.vit, Path(params.checkpoint), params.checkpoint_sha256)
    return model


def model_config(params: Params, num_bins: int) -> dict[str, Any]:
    """What has to be known to build the model again."""
    return {
        "backbone": params.backbone,
        "num_scales": build_tokenizer(params, patch_size=14).num_scales,  # the same for any patch size
        "num_outputs": num_bins,
        "head": params.train.head,
        "normalize": params.train.normalize,
        "pos_embed": params.train.pos_embed,
    }


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """`auto` takes a GPU where there is one; each of several processes (`local_rank`) the one of its number."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if local_rank is not None and name.startswith("cuda"):
        if name != "cuda":
            raise UserError(f"params.yaml: hardware.device: {name!r} is one device for several processes; use cuda")
        name = f"cuda:{local_rank}"
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:  # no such device, or torch was built without it
        problem = str(error).splitlines()[0]
        raise UserError(f"params.yaml: hardware.device: {name!r} cannot be used here ({problem}); try auto") from error
