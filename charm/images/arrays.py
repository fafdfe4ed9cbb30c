"""Converts images in the forms that people have them to numpy arrays, uint8 (H, W, 3), RGB."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from charm.images.convert import pillow_to_rgb
from charm.images.decode import decode_image
from charm.images.limits import FORMATS, LIMITS, Colour
from charm.images.reasons import Rejected
from charm.images.tiff import check_tags, tiff_to_rgb

_MOST_BYTES = LIMITS.max_bytes + 1  # of a file that are read; the last one is to be refused


def as_array(image: Any, colour: Colour = "srgb") -> np.ndarray:
    """Turns an image in any form into a numpy array; numpy arrays are passed on as they are.

    Args:
        image: numpy uint8 (H, W, 3), RGB; a PIL image; a torch uint8 (3, H, W), RGB; a file's path or its bytes.
        colour: what becomes of wide colours of files and PIL images: srgb converts them, as_is does not.

    Returns:
        uint8 (H, W, 3), RGB. Files and PIL images are converted as `charm.images.decode.decode_image` describes.

    Raises:
        Rejected: a file or a PIL image that is refused; it is a ValueError.
        ValueError: any other object; says what came and what was expected.
        OSError: the path cannot be read.
    """
    if isinstance(image, str | Path):
        with Path(image).open("rb") as file:
            image = file.read(_MOST_BYTES)
    if isinstance(image, bytes):
        image = decode_image(image, colour=colour).pixels
    elif isinstance(image, Image.Image):
        image = _from_pil(image, colour)
    elif type(image).__module__.split(".")[0] == "torch":
        if image.ndim != 3 or image.shape[0] != 3 or str(image.dtype) != "torch.uint8":
            shape = tuple(image.shape)
            raise ValueError(f"image is {image.dtype} {shape}: expected a torch tensor, uint8 (3, H, W), RGB")
        image = image.permute(1, 2, 0).cpu().contiguous().numpy()
    check_image(image)
    array: np.ndarray = image
    return array


def _from_pil(image: Any, colour: Colour) -> np.ndarray:
    """Converts an image object of Pillow to uint8 (H, W, 3), RGB.

    The file that the object was opened from is decoded where possible, so that damage and RAW files are refused as by
    `decode_image`; Pillow's pixels no longer show either. This holds only while the object still equals its file: a
    loaded image may have been drawn on, and the file may have been overwritten. A copy of an image knows no file.
    """
    if isinstance(image, ImageFile.ImageFile):
        data = _read_original(image)
        return _from_opened(image, colour) if data is None else decode_image(data, colour=colour).pixels
    # A copy of a TIFF may have values of 12 bits: read as 16, white would be nearly black.
    is_tiff = isinstance(image.info.get("compression"), str)
    if image.mode.startswith("I;16") and is_tiff and np.asarray(image).max() < 4096:
        raise ValueError(
            "image is a copy of a TIFF with 12 or 16 bits per channel, nobody can tell which: expected the file's "
            "path, the image as it was opened, or a numpy array, uint8 (H, W, 3), RGB"
        )
    return _convert(image, colour)


def _from_opened(image: Any, colour: Colour) -> np.ndarray:
    """Converts an image object as `_from_pil` does, from its own pixels: its file is gone, or it was changed."""
    if all(image.format not in one.pillow for one in FORMATS.values()):
        raise Rejected("format")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        check_tags(image)
        return _explaining(lambda: tiff_to_rgb(image, colour))
    return _convert(image, colour)


def _convert(image: Image.Image, colour: Colour) -> np.ndarray:
    bits = 16 if image.mode.startswith("I;16") else 8
    return _explaining(lambda: pillow_to_rgb(image, bits, colour))


def _explaining(convert: Callable[[], tuple[np.ndarray, list[str]]]) -> np.ndarray:
    """Returns the converted pixels; raises ValueError if Pillow cannot load them, as after the file was closed."""
    try:
        return convert()[0]
    except Rejected:
        raise
    except (OSError, ValueError, AttributeError, AssertionError) as error:
        raise ValueError(f"image is a PIL image that cannot be read ({error}): open it again") from error


def _read_original(image: Any) -> bytes | None:
    """Reads the file that an object was opened from; returns None if it is gone or the object has changed since."""
    is_loaded = image._im is not None
    try:
        file = image.fp or getattr(image, "_fp", None)
        if is_loaded and image.filename:  # WebP and AVIF have pixels for a file once they are loaded
            with Path(image.filename).open("rb") as opened:
                data = opened.read(_MOST_BYTES)
        elif file is not None and not getattr(file, "closed", True):
            place = file.tell()
            file.seek(0)
            data = file.read(_MOST_BYTES)
            file.seek(place)
        else:
            data = b""
        if len(data) > LIMITS.max_bytes and not is_loaded:
            return data  # for `decode_image` to refuse
        # Opened again: another frame or a draft (JPEG) is not what the file holds; after loading, pixels are compared.
        again = Image.open(io.BytesIO(data))
        if image.tell() or sorted(again.size) != sorted(image.size):
            return None
        if is_loaded:
            again.load()
        is_same = again == image if is_loaded else again.mode == image.mode
    except Exception:  # closed, moved, overwritten by something else
        return None
    return data if is_same else None


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
