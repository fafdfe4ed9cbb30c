"""The backbone whose features are stored: the one that training starts from, frozen."""

from typing import Any

import torch

from charm.model.frozen import choose_layers, list_parts
from charm.model.vit import CharmViT
from charm.runtime.errors import UserError
from pipeline.settings.models import start_model
from pipeline.settings.params import Params


def start_frozen(params: Params) -> CharmViT:
    """Builds the model whose features are stored; equal params give equal weights in any process.

    Raises:
        UserError: the backbone is no plain vision transformer, or cannot be had.
    """
    torch.manual_seed(params.seed)  # of what has no published weights
    model = start_model(params, num_bins=1)
    if not isinstance(model, CharmViT):
        problem = f"{params.backbone} has no tokens that could be pooled layer by layer"
        raise UserError(f"params.yaml: train.mode: {problem}: choose fine_tune, or a plain ViT as backbone")
    return model.eval().requires_grad_(False)


def choose_features(params: Params, model: CharmViT) -> dict[str, Any]:
    """Returns the `layers` and `parts` that the column holds of each draw.

    Raises:
        UserError: the backbone has no such layer.
    """
    depth = model.num_layers - 2
    layers = sorted(set(params.features.layers or choose_layers(depth)))
    if layers[-1] > depth:
        raise UserError(f"params.yaml: features.layers: {params.backbone} has {depth} layers, got {layers[-1]}")
    return {"layers": layers, "parts": list_parts(model)}
