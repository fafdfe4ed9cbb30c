"""From an image to a model's tokens, as the model's config says; needs no torch."""

from typing import Any

import numpy as np

from charm.images.arrays import as_array
from charm.inputs.registry import TOKENIZERS
from charm.tokenization.draws import pixel_key
from charm.tokenization.geometry import downscale, limit_edge
from charm.tokenization.tokenizer import CharmTokenizer
from charm.tokenization.tokens import Tokens


class Preparation:
    """Turns images into tokens as they were in a model's training.

    Args:
        config: as the stage `evaluate` writes it into config.json.
        device: where a detector of the salient object runs, if the model needs one.

    Attributes:
        tokenizer: that cuts images.
        config, device: as given.
        draws: of an image's patches, as many as `evaluate` took.

    Raises:
        ValueError: the config is not of a Charm model.
    """

    def __init__(self, config: dict[str, Any], device: str = "cpu") -> None:
        self.config, self.device = config, device
        try:
            settings = dict(config["tokenizer"])
            self.tokenizer = TOKENIZERS[settings.pop("name")](CharmTokenizer(**settings), False)
            self._seed, self.draws, self._max_edge = config["seed"], config["draws"], config["max_edge"]
        except (LookupError, TypeError) as error:
            raise ValueError(f"config is not of a Charm model: {type(error).__name__} {error}") from error

    @property
    def needs_mask(self) -> bool:
        """Whether images come with a mask of their salient object."""
        return self.tokenizer.reads == "saliency"

    def tokenize(
        self, image: Any, saliency_mask: np.ndarray | None = None, *, draws: int | None = None
    ) -> list[Tokens]:
        """The tokens of an image, once per draw; several threads may call it. Arguments as for a call."""
        count = self.draws if draws is None else draws
        if count < 1:
            raise ValueError(f"draws={count}: expected at least 1")
        if self.needs_mask != (saliency_mask is not None):
            needed = "needs" if self.needs_mask else "takes no"
            raise ValueError(f"this model {needed} saliency_mask, as it was trained")
        whole = as_array(image)
        limited = self.limit_size(whole)
        arguments: dict[str, Any] = {"seed": self._seed, "key": pixel_key(limited)}
        if saliency_mask is not None:
            if saliency_mask.shape != whole.shape[:2]:
                raise ValueError(f"saliency_mask is {saliency_mask.shape}: expected {whole.shape[:2]}, as the image")
            mask = np.ascontiguousarray(saliency_mask, dtype=bool).view(np.uint8)
            arguments["saliency_mask"] = downscale(mask, limited.shape[:2]).astype(bool)
        return [self.tokenizer(limited, epoch=draw, **arguments) for draw in range(count)]

    def limit_size(self, image: np.ndarray) -> np.ndarray:
        """An image, uint8 (H, W, 3), at the most that images were in training (`manifest.max_edge`)."""
        height, width = image.shape[:2]
        return downscale(image, limit_edge((height, width), self._max_edge))
