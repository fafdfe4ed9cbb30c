"""All kinds of models: what a backbone of timm is made to score images by."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from timm.models import is_model_pretrained
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from charm.model.backbones import BackboneError
from charm.model.config import ViTConfig
from charm.model.image import ImageModel
from charm.model.protocol import Model
from charm.model.vit import CharmViT
from charm.runtime.errors import UserError, first_line
from charm.runtime.waiting import reaching_hub

MODELS: tuple[type[Model], ...] = (CharmViT, ImageModel)


def build_model(config: ViTConfig, pretrained: bool = False) -> Model:
    """Builds the first kind of model that takes the backbone of a config, with its published weights if pretrained.

    Raises ValueError if no kind takes the backbone, for these reasons; or it cannot be used with these settings.
    """
    reasons = []
    for kind in MODELS:
        try:
            model = kind.from_config(config, pretrained)
            model.activation = config.activation
            return model
        except BackboneError as error:
            reasons.append(str(error))
    raise ValueError("; or ".join(reasons))


def restore_model(config: ViTConfig, tensors: Mapping[str, Tensor]) -> Model:
    """Builds a model with all of its weights given, without drawing any first.

    It shares the memory of those that have its own type and are contiguous.

    Raises ValueError as `build_model`, RuntimeError if the weights are of another model.
    """
    with _undrawn_parameters():
        model = build_model(config)
    if not isinstance(model, CharmViT):  # others of timm's may make what is not saved from where their parameters are
        model = build_model(config)
    types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    own = {name: tensor.to(types.get(name)).contiguous() for name, tensor in tensors.items()}
    model.load_state_dict(own, assign=True)
    return model


@contextlib.contextmanager
def _undrawn_parameters() -> Iterator[None]:
    """Lets modules that this thread builds have no values in their parameters, which are on the device `meta`.

    Buffers are made, as not all of them are saved. To draw the weights of a ViT-L takes five seconds.
    """
    thread = threading.get_ident()

    def leave_undrawn(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:  # torch says: None
        if parameter is None or threading.get_ident() != thread:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(leave_undrawn)
    try:
        yield
    finally:
        hook.remove()


def fetch_model(config: ViTConfig, pretrained: bool, remedy: str) -> Model:
    """Builds a model as `build_model`; published weights are downloaded if the hub's cache does not have them.

    Args:
        config, pretrained: as of `build_model`.
        remedy: how no network is needed, besides by the cache: "with checkpoint:".

    Raises:
        UserError: the backbone cannot be used, or its weights cannot be downloaded.
    """
    is_on_hub = pretrained and is_model_pretrained(config.backbone)
    with reaching_hub() if is_on_hub else contextlib.nullcontext("") as missing:
        try:
            return build_model(config, pretrained)
        except (ValueError, RuntimeError) as error:  # timm's RuntimeError: nobody published weights of this backbone
            raise UserError(str(error)) from error
        except OSError as error:  # no network, no such repository
            raise UserError(
                f"the weights of {config.backbone} cannot be downloaded ({missing or first_line(error)}); no network "
                f"is needed when the hub's cache has them, or {remedy}"
            ) from error


def describe_weights(model: Model) -> tuple[str | None, str | None]:
    """Returns where the published weights of a model's backbone are, and their licence; None where nobody knows."""
    facts = getattr(model.backbone, "pretrained_cfg", None) or {}
    return facts.get("hf_hub_id") or facts.get("url") or None, facts.get("license")
