"""Images as people have them -> uint8 (H, W, 3), RGB."""

from typing import Any

import numpy as np


def as_array(image: Any) -> np.ndarray:
    """An image as a numpy array; numpy arrays are passed on as they are.

    Args:
        image: numpy uint8 (H, W, 3), RGB; a PIL image; or a torch uint8 (3, H, W), RGB.

    Returns:
        uint8 (H, W, 3), RGB. A PIL image is turned upright by its EXIF orientation, 16 bits become 8, and transparent
        pixels are put on white, as the pipeline reads files.

    Raises:
        ValueError: anything else; says what came and what was expected.
    """
    kind = type(image).__module__.split(".")[0]
    if kind == "PIL":
        image = _from_pil(image)
    elif kind == "torch":
        if image.ndim != 3 or image.shape[0] != 3 or str(image.dtype) != "torch.uint8":
            shape = tuple(image.shape)
            raise ValueError(f"image is {image.dtype} {shape}: expected a torch tensor, uint8 (3, H, W), RGB")
        image = image.permute(1, 2, 0).cpu().contiguous().numpy()
    check_image(image)
    array: np.ndarray = image
    return array


def _from_pil(image: Any) -> np.ndarray:
    """uint8 (H, W, 3), RGB."""
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):  # which Pillow's own conversion would clip at 255
        return np.repeat((np.asarray(upright) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if upright.mode in ("I", "F"):
        raise ValueError(f"image is a PIL image of mode {upright.mode}: expected one of 8 or 16 bits per channel")
    if upright.has_transparency_data:
        whole = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole)
    return np.asarray(upright.convert("RGB"))


def check_image(image: np.ndarray) -> None:
    """Raises ValueError unless the image is uint8 (H, W, 3) with at least one pixel."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        came = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image is {came}: expected a numpy array, uint8 (H, W, 3), RGB")
    if image.size == 0:
        raise ValueError(f"image has no pixels, {image.dtype} {image.shape}: expected at least one")


def check_mask(saliency_mask: np.ndarray, image_hw: tuple[int, ...]) -> None:
    """Raises ValueError unless the mask is bool and as large as the image."""
    if saliency_mask.dtype != bool or saliency_mask.shape != image_hw:
        came = f"{saliency_mask.dtype} {saliency_mask.shape}"
        raise ValueError(f"saliency_mask is {came}: expected bool {image_hw}, as large as the image")
