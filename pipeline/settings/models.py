"""The model that params.yaml or a model's config describes."""

from pathlib import Path

import torch
from timm.models import is_model_pretrained

from charm.model import registry
from charm.model.config import ViTConfig
from charm.model.pos_embed import fit_additive
from charm.model.protocol import Model
from charm.runtime.errors import UserError, first_line
from charm.runtime.waiting import reach_hub
from charm.runtime.weights import load_backbone
from pipeline.settings.inputs import sketch_tokenizer
from pipeline.settings.params import Params
from pipeline.work.store import repository_path


def build_model(config: ViTConfig, pretrained: bool = False) -> Model:
    """Builds the model that a config describes.

    Raises:
        UserError: the backbone cannot be used, or its weights cannot be downloaded.
    """
    missing = reach_hub() if pretrained and is_model_pretrained(config.backbone) else ""
    try:
        return registry.build_model(config, pretrained)
    except (ValueError, RuntimeError) as error:  # timm's RuntimeError: nobody published weights of this backbone
        raise UserError(str(error)) from error
    except OSError as error:  # no network, no such repository
        raise UserError(
            f"the weights of {config.backbone} cannot be downloaded ({missing or first_line(error)}); no network is "
            "needed when the hub's cache has them, or with checkpoint: or pretrained: false"
        ) from error


def start_model(params: Params, num_bins: int) -> Model:
    """Builds the model that training starts from: with the weights of `checkpoint`, or published ones, or none."""
    model = build_model(vit_config(params, num_bins), params.pretrained and not params.checkpoint)
    if params.checkpoint:
        read = load_backbone(model.backbone, repository_path(params.checkpoint), params.checkpoint_sha256)
        found, own = read.get("scale_embed"), model.scale_embed
        if found is not None and own is not None and found.shape == own.shape:  # MUSIQ's
            own.data.copy_(found)
    if params.pos_embeds.fit == "additive":
        learnt = model.learnt_grid
        if learnt is None:
            problem = f"{params.backbone} has learnt no position embeddings: expected grid"
            raise UserError(f"params.yaml: pos_embeds.fit: {problem}")
        with torch.no_grad():
            learnt.copy_(fit_additive(learnt))
    start = params.input_settings.resizer_start
    if start and model.resizer is not None:
        with torch.no_grad():
            model.resizer.scale.copy_(torch.tensor(start[0]))
            model.resizer.bias.copy_(torch.tensor(start[1]))
    if params.train.scale_embed == "frozen" and model.scale_embed is not None:
        model.scale_embed.requires_grad_(False)
    return model


def describe_start(params: Params, model: Model) -> tuple[str | None, str | None]:
    """Returns the name and licence of the weights that training starts from; None where absent or unknown."""
    if params.checkpoint:
        return Path(params.checkpoint).name, None
    facts = (getattr(model.backbone, "pretrained_cfg", None) or {}) if params.pretrained else {}
    return facts.get("hf_hub_id") or facts.get("url") or None, facts.get("license")


def vit_config(params: Params, num_bins: int) -> ViTConfig:
    """Returns the facts that are needed to build the model again."""
    sketch = sketch_tokenizer(params)
    return ViTConfig(
        backbone=params.backbone,
        num_scales=sketch.num_scales if params.train.scale_embed != "none" else 1,
        num_outputs=num_bins,
        head=params.train.head,
        normalize=params.train.normalize,
        pos_embed=params.train.pos_embed,
        image_edge=params.input_settings.whole_edge,
        num_residuals=sketch.num_residuals,
    )
