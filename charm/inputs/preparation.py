"""From an image to a model's tokens, as the model's config says; needs no torch."""

from typing import Any

import numpy as np

from charm.images.arrays import as_array
from charm.images.limits import Colour
from charm.inputs.registry import INPUTS, build_input
from charm.inputs.settings import SETTINGS
from charm.model.config import InputConfig, ModelConfig, SaliencyConfig
from charm.runtime.schema import build
from charm.tokenization.draws import pixel_key
from charm.tokenization.geometry import downscale, limit_edge
from charm.tokenization.tokenizer import CharmTokenizer
from charm.tokenization.tokens import Tokens


class Preparation:
    """Turns images into tokens as in a model's training.

    Raises ValueError if the input is unknown, or a setting is not one that it may have.
    """

    def __init__(
        self,
        settings: InputConfig,
        max_edge: int | None = None,  # pixels; larger images are downscaled first
        seed: int = 0,
        draws: int = 1,  # of patches, per image
        saliency: SaliencyConfig | None = None,  # how masks are made, if the input needs them
        device: str = "cpu",  # where a detector of the salient object runs
        colour: Colour = "srgb",
    ) -> None:
        self.settings, self.max_edge, self.seed, self.draws = settings, max_edge, seed, draws
        self.saliency, self.device, self.colour = saliency, device, colour
        if settings.name not in INPUTS:
            raise ValueError(f"tokenizer.name={settings.name!r}: expected one of {', '.join(INPUTS)}")
        try:
            cutter = CharmTokenizer(**settings.cutter)
            self.tokenizer = build_input(settings.name, settings.settings, cutter)
            self.whole_edge = build(SETTINGS[settings.name], settings.settings).whole_edge
        except (TypeError, ValueError) as error:
            raise ValueError(f"tokenizer: {error}") from error
        self.patch_size = cutter.patch_size  # of the backbone, pixels

    @classmethod
    def from_config(cls, config: ModelConfig, full_size: bool = False) -> "Preparation":
        """Builds the preparation that a model's config describes; `full_size` as of `choose_edge`."""
        edge = choose_edge(config, full_size)
        return cls(config.tokenizer, edge, config.seed, config.draws, config.saliency, colour=config.colour)

    @property
    def needs_mask(self) -> bool:
        """Whether images need a mask of their salient object."""
        return self.tokenizer.reads == "saliency"

    def tokenize(
        self, image: Any, saliency_mask: np.ndarray | None = None, *, draws: int | None = None
    ) -> list[Tokens]:
        """Tokenizes an image once per draw; arguments as of CharmScorer. Several threads may call it."""
        count = self.draws if draws is None else draws
        if count < 1:
            raise ValueError(f"draws={count}: expected at least 1")
        if self.needs_mask != (saliency_mask is not None):
            needed = "needs" if self.needs_mask else "takes no"
            raise ValueError(f"this model {needed} saliency_mask, as it was trained")
        whole = as_array(image, self.colour)
        limited = self.limit_size(whole)
        arguments: dict[str, Any] = {"seed": self.seed, "key": pixel_key(limited)}
        if saliency_mask is not None:
            if saliency_mask.shape != whole.shape[:2]:
                raise ValueError(f"saliency_mask is {saliency_mask.shape}: expected {whole.shape[:2]}, as the image")
            mask = np.ascontiguousarray(saliency_mask, dtype=bool).view(np.uint8)
            arguments["saliency_mask"] = downscale(mask, limited.shape[:2]).astype(bool)
        return [self.tokenizer(limited, epoch=draw, **arguments) for draw in range(count)]

    def limit_size(self, image: np.ndarray) -> np.ndarray:
        """Downscales an image, uint8 (H, W, 3), that is larger than the images of the training were."""
        return downscale(image, self.limited_hw(image.shape[:2]))

    def limited_hw(self, image_hw: tuple[int, ...]) -> tuple[int, int]:
        """Returns the size in pixels, (height, width), at which an image is seen."""
        height, width = image_hw
        return limit_edge((height, width), self.max_edge)


def choose_edge(config: ModelConfig, full_size: bool = False) -> int | None:
    """Returns the longest edge, pixels, that a model is shown: that of its training, or max_edge with `full_size`."""
    edges = [config.max_edge, None if full_size else config.training.edge]
    return min((edge for edge in edges if edge is not None), default=None)
