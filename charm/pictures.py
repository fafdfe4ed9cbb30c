"""Pictures as people have them -> uint8 (H, W, 3), RGB."""

from typing import Any

import numpy as np


def as_array(picture: Any) -> np.ndarray:
    """A picture as a numpy array; numpy arrays are passed on as they are.

    Args:
        picture: numpy uint8 (H, W, 3), RGB; a PIL image of any mode; or a torch uint8 (3, H, W), RGB.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ValueError: anything else; says what came and what was expected.
    """
    kind = type(picture).__module__.split(".")[0]
    if kind == "PIL":
        picture = np.asarray(picture.convert("RGB"))
    elif kind == "torch":
        if picture.ndim != 3 or picture.shape[0] != 3 or str(picture.dtype) != "torch.uint8":
            shape = tuple(picture.shape)
            raise ValueError(f"image is {picture.dtype} {shape}: expected a torch tensor, uint8 (3, H, W), RGB")
        picture = picture.permute(1, 2, 0).cpu().contiguous().numpy()
    check_image(picture)
    array: np.ndarray = picture
    return array


def check_image(image: np.ndarray) -> None:
    """Raises ValueError unless the picture is uint8 (H, W, 3) with at least one pixel."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        came = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image is {came}: expected a numpy array, uint8 (H, W, 3), RGB")
    if image.size == 0:
        raise ValueError(f"image has no pixels, {image.dtype} {image.shape}: expected at least one")
