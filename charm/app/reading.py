"""Photographs as files -> what charm.scorer takes: the command and the server read them alike."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from charm.app.options import MODEL
from charm.hub import find_model, read_config, refusing
from charm.images.decode import decode_image
from charm.images.limits import Limits
from charm.inputs.preparation import Preparation
from charm.model.config import InputConfig, ModelConfig, SaliencyConfig
from charm.runtime.errors import UserError
from charm.saliency import mbd
from charm.saliency.weights import find_checkpoint, find_detector
from charm.tokenization.geometry import downscale
from charm.tokenization.tokenizer import CharmTokenizer
from charm.tokenization.tokens import Tokens

if TYPE_CHECKING:
    from charm.scorer import CharmScorer


def load_scorer(
    folder: str, device: str = "auto", precision: str = "float32", full_size: bool = False
) -> "CharmScorer":
    """Loads the scorer of a model: a folder, or user/name on the hub.

    Raises UserError if it is missing, damaged, not of a Charm model, or there is no such device.
    """
    from charm.scorer import CharmScorer

    with explaining(folder):
        return CharmScorer.from_pretrained(folder, device, precision, full_size)


def load_preparation(folder: str | None) -> Preparation:
    """Loads what a model, a folder or user/name on the hub, says of how images become tokens.

    Without one it is that of a clone's trained model, and where there is none, the tokenizer's own defaults. Raises
    UserError if it is missing, damaged, or not of a Charm model.
    """
    if folder is None and not Path(MODEL, "config.json").is_file():
        print("no model is named: Charm's default settings (--model FOLDER takes a model's)", file=sys.stderr)
        return Preparation(InputConfig("charm", {}, CharmTokenizer().settings))
    return Preparation.from_config(load_config(folder or MODEL)[0])


def load_config(folder: str) -> tuple[ModelConfig, str]:
    """Loads the config of a model, and the sha256 of its weights; says what is wrong with them, as load_preparation."""
    with explaining(folder), refusing(folder):
        config, weights_sha256 = read_config(find_model(folder))
        Preparation.from_config(config)
        return config, weights_sha256


@contextmanager
def explaining(folder: str) -> Iterator[None]:
    """Turns what is wrong with a model's folder into a line for people."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: {error.strerror}; name a model's folder, or user/name on the hub; a clone "
            f"has one at {MODEL} once it was trained"
        ) from error
    except ValueError as error:
        raise UserError(str(error)) from error


def tokenize_file(
    model: Preparation, data: bytes, limits: Limits, draws: int | None = None, size: float = 1.0
) -> tuple[list[Tokens], tuple[int, int] | None]:
    """Tokenizes an image from its file's bytes, downscaled first to `size` of its height and width.

    Returns:
        Its tokens, once per draw, and the size in pixels, (height, width), at which the model sees it, if that is not
        its own.

    Raises:
        Rejected: it cannot be decoded, or asks for more than the limits.
    """
    image = decode_image(data, limits, model.colour).pixels
    if size < 1:
        image = downscale(image, (max(1, round(image.shape[0] * size)), max(1, round(image.shape[1] * size))))
    height, width = model.limited_hw(image.shape[:2])
    tokens = model.tokenize(image, find_mask(model, image), draws=draws)
    return tokens, None if (height, width) == image.shape[:2] else (height, width)


def find_mask(model: Preparation, image: np.ndarray) -> np.ndarray | None:
    """Makes the saliency mask, bool (H, W), as for training; returns None for models that read no mask.

    Raises UserError if SAM-HQ or its detector cannot be loaded.
    """
    if not model.needs_mask:
        return None
    known = model.saliency or SaliencyConfig("mbd", {}, None)
    if known.backend == "mbd":
        return mbd.detect(image)
    from charm.saliency import sam_hq

    settings = dict(known.settings)
    detector, settings["detector_sha256"] = find_detector(known.detector or "")
    checkpoint, settings["sam_sha256"] = find_checkpoint(settings["sam"], None, settings["sam_sha256"])
    places: dict[str, Any] = {"detector": str(detector), "sam_checkpoint": str(checkpoint), "device": model.device}
    return sam_hq.detect(image, sam_hq.SamHqSettings(**settings, **places)).saliency_mask
