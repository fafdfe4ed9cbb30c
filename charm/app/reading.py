"""Photographs as files -> what charm.scorer takes: the command and the server read them alike."""

from typing import Any

import numpy as np

from charm.images.decode import Limits, decode_image
from charm.runtime.devices import choose_device
from charm.runtime.errors import UserError
from charm.saliency import mbd
from charm.saliency.weights import find_checkpoint, find_detector
from charm.scorer import CharmScorer
from charm.tokenization.tokens import Tokens


def load_scorer(folder: str, device: str = "auto", precision: str = "float32") -> CharmScorer:
    """The scorer of a model's folder.

    Raises:
        UserError: missing, damaged, not of a Charm model, or there is no such device.
    """
    try:
        return CharmScorer.from_pretrained(folder, choose_device(device), precision)
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: {error.strerror}; name a model's folder with --model; a clone has one at "
            "runs/evaluate/model once it was trained"
        ) from error
    except ValueError as error:
        raise UserError(str(error)) from error


def tokenize_file(scorer: CharmScorer, data: bytes, limits: Limits, draws: int | None = None) -> list[Tokens]:
    """The tokens of an image from its file's bytes, once per draw.

    Raises:
        Rejected: it cannot be decoded, or asks for more than the limits.
    """
    image = decode_image(data, limits).pixels
    return scorer.tokenize(image, find_mask(scorer, image), draws=draws)


def find_mask(scorer: CharmScorer, image: np.ndarray) -> np.ndarray | None:
    """The mask of the salient object, bool (H, W), as it was made for training; None for models that need none.

    Raises:
        UserError: SAM-HQ or its detector cannot be loaded.
    """
    if not scorer.needs_mask:
        return None
    known: dict[str, Any] = scorer.config["saliency"] or {"backend": "mbd"}
    if known["backend"] == "mbd":
        return mbd.detect(image)
    from charm.saliency import sam_hq

    settings = dict(known["settings"])
    detector, settings["detector_sha256"] = find_detector(known["detector"])
    checkpoint, settings["sam_sha256"] = find_checkpoint(settings["sam"], None, settings["sam_sha256"])
    places: dict[str, Any] = {
        "detector": str(detector),
        "sam_checkpoint": str(checkpoint),
        "device": str(scorer.device),
    }
    return sam_hq.detect(image, sam_hq.SamHqSettings(**settings, **places)).saliency_mask
