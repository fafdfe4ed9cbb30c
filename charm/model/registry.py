"""All kinds of models: what a backbone of timm is made to score images by."""

from charm.model.backbones import BackboneError
from charm.model.config import ViTConfig
from charm.model.image import ImageModel
from charm.model.protocol import Model
from charm.model.vit import CharmViT

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
