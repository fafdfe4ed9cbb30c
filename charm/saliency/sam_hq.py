"""Finds the object that a text names: boxes by a detector, masks in them by SAM-HQ, their union.

SAM-HQ, the paper's choice (section 4.2, appendix 8), takes boxes and points, but no text, so a detector has to read
the prompt: Grounding DINO, MM-Grounding-DINO, OWLv2 or OWL-ViT. Only this module uses transformers and
segment_anything_hq, and imports them only when models are loaded: that takes seconds, and the latter puts models of its
own into timm's registry under timm's names.

    found = detect(image, settings)
"""

import contextlib
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from charm.runtime.disk import file_sha256
from charm.runtime.errors import UserError, first_line
from charm.runtime.weights import describe_misfit, list_problems, read_tensors
from charm.saliency.gpus import choose_worker_device

MAX_ASPECT = 1000  # of the longer edge to the shorter; both models shrink the longer to some 1000 pixels
# Detectors of transformers -> whether they score each token of a prompt (Grounding DINO), or each phrase as a whole.
DETECTORS = {"grounding-dino": True, "mm-grounding-dino": True, "owlv2": False, "owlvit": False}
MAX_LOGITS = 1 << 27  # values, 0.5 GB, of the masks that are made at once: all boxes of images up to 13 megapixels


@dataclass(frozen=True)
class SamHqSettings:
    """The prompt and the models, as in the section importance.saliency.sam_hq of a run.

    But `sam_checkpoint` is the path of the file, and `detector` that of the folder, of which these are the sha256s.
    """

    prompt: str
    box_threshold: float
    text_threshold: float
    top_k: int
    hq_token_only: bool
    sam: str
    sam_sha256: str
    detector_sha256: str
    sam_checkpoint: str
    detector: str
    device: str


@dataclass(frozen=True)
class Found:
    """The objects that a prompt found in an image."""

    saliency_mask: np.ndarray  # bool (H, W), True in the union of all objects; all False where there is none
    boxes: np.ndarray  # float32 (N, 4), (top, left, bottom, right) in pixels, best first
    scores: np.ndarray  # float32 (N,), 0..1, the detector's


@dataclass(frozen=True)
class Models:
    """Both models, on one device; `in_use` because the predictor holds one image's features at a time."""

    processor: Any
    detector: Any
    predictor: Any
    device: torch.device
    in_use: threading.Lock


def detect(image: np.ndarray, settings: SamHqSettings) -> Found:
    """Marks the objects that the prompt names in an image; the models are loaded once per process.

    Args:
        image: uint8 (H, W, 3), RGB.

    Raises:
        UserError: a model cannot be loaded.
    """
    models = load_models(settings)
    with models.in_use, torch.inference_mode():
        boxes, scores = _find_boxes(models, image, settings)
        saliency_mask = _segment_boxes(models, image, boxes, settings.hq_token_only)
    return Found(saliency_mask, boxes[:, [1, 0, 3, 2]].cpu().numpy(), scores.cpu().numpy())


def _find_boxes(models: Models, image: np.ndarray, settings: SamHqSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the best boxes, float32 (N, 4), in pixels and the models' order (x, y, x, y), with scores, float32 (N,)."""
    height, width = image.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):  # in a model it would be less than a pixel wide
        return torch.zeros(0, 4), torch.zeros(0)
    reads_tokens = DETECTORS[models.detector.config.model_type]
    text = format_prompt(settings.prompt)
    phrases = [phrase.strip() for phrase in text.split(".") if phrase.strip()]
    # Without the data format an image of three rows would be taken for one of three planes.
    inputs = models.processor(
        images=image, text=text if reads_tokens else [phrases], input_data_format="channels_last", return_tensors="pt"
    ).to(models.device)
    options = {"input_ids": inputs["input_ids"], "text_threshold": settings.text_threshold} if reads_tokens else {}
    (found,) = models.processor.post_process_grounded_object_detection(
        models.detector(**inputs), threshold=settings.box_threshold, target_sizes=[(height, width)], **options
    )
    boxes, scores = found["boxes"], found["scores"]
    if reads_tokens:
        # The library's text threshold decides on a box's label alone, which is empty where no token of the prompt
        # reaches it. Without boxes there is one empty label all the same.
        labels = found["text_labels"][: len(boxes)]
        named = torch.tensor([bool(label) for label in labels], dtype=torch.bool, device=models.device)
        boxes, scores = boxes[named], scores[named]
    best = torch.argsort(scores, descending=True, stable=True)[: settings.top_k]
    return boxes[best], scores[best]


def format_prompt(prompt: str) -> str:
    """Formats a prompt as in Grounding DINO's training: lower case, with a full stop at the end."""
    text = prompt.strip().lower()
    return text if text.endswith(".") else f"{text}."


def _segment_boxes(models: Models, image: np.ndarray, boxes: torch.Tensor, hq_token_only: bool) -> np.ndarray:
    """Returns the union of the masks in some boxes of an image, bool (H, W)."""
    height, width = image.shape[:2]
    union = torch.zeros(height, width, dtype=torch.bool, device=models.device)
    if len(boxes) == 0:
        return union.cpu().numpy()
    predictor = models.predictor
    with _half_precision(models.device):
        predictor.set_image(image)
    predictor.features = predictor.features.float()
    predictor.interm_features = [features.float() for features in predictor.interm_features]
    scaled = predictor.transform.apply_boxes_torch(boxes, (height, width))
    for some in scaled.split(max(1, MAX_LOGITS // (height * width))):
        masks, _, _ = predictor.predict_torch(
            point_coords=None, point_labels=None, boxes=some, multimask_output=False, hq_token_only=hq_token_only
        )
        union |= masks.any(dim=0)[0]
    predictor.reset_image()
    return union.cpu().numpy()


def _half_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Returns a context of half precision on a GPU, for the image encoder, which takes nearly all the time."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast("cuda", torch.bfloat16 if bfloat16 else torch.float16)


_loading = threading.Lock()


def load_models(settings: SamHqSettings) -> Models:
    """Loads both models, ready to use; once per process.

    Raises UserError if a file is not what it should be, or there is no such device.
    """
    with _loading:  # a worker may have several threads
        return _load(settings.sam, settings.sam_checkpoint, settings.sam_sha256, settings.detector, settings.device)


@lru_cache(maxsize=1)
def _load(sam: str, checkpoint: str, sha256: str, folder: str, device: str) -> Models:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # a worker is one process per core
    place = choose_worker_device(device)
    processor, detector = load_detector(Path(folder))
    model = load_sam(sam, Path(checkpoint), sha256)
    with _quiet():
        from segment_anything_hq import SamPredictor
    return Models(processor, detector.to(place), SamPredictor(model.to(place)), place, threading.Lock())


def load_detector(folder: Path) -> tuple[Any, Any]:
    """Loads processor and model of a detector from a folder with safetensors; unpickles nothing, runs no code of it.

    Raises UserError if the folder holds another model, or not all of this one.
    """
    from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        kind = AutoConfig.from_pretrained(folder, **local).model_type
        if kind not in DETECTORS:
            raise ValueError(f"it is a {kind}")
        processor = AutoProcessor.from_pretrained(folder, **local)
        loaded: Any = AutoModelForZeroShotObjectDetection.from_pretrained(
            folder,
            **local,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # the report below names them
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many kinds on files of another model
        raise UserError(
            f"{folder}: cannot be loaded as a detector of transformers ({first_line(error)}); "
            f"expected {', '.join(DETECTORS)}"
        ) from error
    model, report = loaded
    reshaped = [name for name, *_ in report["mismatched_keys"]]
    # What older versions stored besides does no harm.
    _refuse(f"{folder} as a detector ({kind})", list_problems(report["missing_keys"], (), reshaped))
    return processor, model.eval()


def _build_published(name: str) -> Any:
    with _quiet():
        from segment_anything_hq import sam_model_registry

        return sam_model_registry[name](checkpoint=None)


# The library's builders read a checkpoint with strict=False and unpickle it, so they are given none.
SAM_MODELS: dict[str, Callable[[], Any]] = {
    name: partial(_build_published, name) for name in ("vit_tiny", "vit_b", "vit_l", "vit_h")
}


def load_sam(name: str, checkpoint: Path, sha256: str) -> Any:
    """Builds a SAM-HQ with the weights of a checkpoint, on the CPU, ready to use.

    Raises UserError if the file is missing, has another sha256, cannot be read safely, or is of another model.
    """
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint} is not on this machine: all workers have to share the folder of the weights")
    if file_sha256(checkpoint) != sha256:
        raise UserError(f"{checkpoint} has changed: its sha256 is no longer {sha256}")
    model = SAM_MODELS[name]()
    weights = read_tensors(checkpoint)
    _refuse(f"{checkpoint} as SAM-HQ {name}", describe_misfit(model.state_dict(), weights))
    model.load_state_dict(weights)
    # After the weights: TinyViT's eval() stores sums of its attention biases, and the builder has called it before.
    return model.eval().requires_grad_(False)


def _refuse(what: str, problems: str) -> None:
    if problems:
        raise UserError(f"{what}: {problems}: these weights are of another model, or not all of them")


@contextlib.contextmanager
def _quiet() -> Any:
    """Silences warnings: segment_anything_hq imports deprecated names of timm and overwrites timm's registry."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
