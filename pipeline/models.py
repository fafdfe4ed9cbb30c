"""Models from their description, and where they run."""

from typing import Any

import torch

from charm.model import CharmViT
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.tokenizers import build_tokenizer


def build_model(config: dict[str, Any], pretrained: bool) -> CharmViT:
    """The model that `model_config` describes."""
    try:
        return CharmViT(
            config["backbone"],
            pretrained=pretrained,
            num_scales=config["num_scales"],
            num_outputs=config["num_outputs"],
            head=config["head"],
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    except OSError as error:  # no network, no such repository
        raise UserError(
            f"the weights of {config['backbone']} cannot be downloaded ({error}); no network is needed when the hub's "
            "cache has them, or with pretrained: false"
        ) from error


def model_config(params: Params, num_bins: int) -> dict[str, Any]:
    """What has to be known to build the model again."""
    return {
        "backbone": params.backbone,
        "num_scales": build_tokenizer(params, patch_size=14).num_scales,  # the same for any patch size
        "num_outputs": num_bins,
        "head": params.train.head,
    }


def choose_device(name: str) -> torch.device:
    """`auto` takes a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:  # no such device, or torch was built without it
        raise UserError(f"params.yaml: hardware.device: {name!r} cannot be used here ({error}); try auto") from error
