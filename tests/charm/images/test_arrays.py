"""Images in every form that people have them."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from charm import CharmTokenizer, score_patches
from charm.images.arrays import as_array
from charm.images.decode import decode_image

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("image", "came"),
    [
        pytest.param(np.zeros((8, 9, 3), np.float32), r"float32 \(8, 9, 3\): expected .*uint8", id="float"),
        pytest.param(np.zeros((8, 9, 3), bool), r"bool \(8, 9, 3\)", id="bool"),
        pytest.param(np.zeros((8, 9), np.uint8), r"uint8 \(8, 9\): expected .*\(H, W, 3\)", id="grey"),
        pytest.param(np.zeros((8, 9, 4), np.uint8), r"uint8 \(8, 9, 4\)", id="with alpha"),
        pytest.param(np.zeros((3, 8, 9), np.uint8), r"uint8 \(3, 8, 9\)", id="channels first"),
        pytest.param(np.zeros((1, 8, 9, 3), np.uint8), r"uint8 \(1, 8, 9, 3\)", id="batch"),
        pytest.param([[[0, 0, 0]]], "list", id="not an array"),
        pytest.param(np.zeros((0, 9, 3), np.uint8), r"no pixels.*\(0, 9, 3\)", id="no pixels"),
    ],
)
def test_what_is_not_a_image_is_refused(image: Any, came: str) -> None:
    with pytest.raises(ValueError, match=came):
        as_array(image)


def test_the_smallest_image_is_one() -> None:
    assert as_array(np.zeros((1, 1, 3), np.uint8)).shape == (1, 1, 3)


def test_a_numpy_array_is_passed_on_as_it_is() -> None:
    assert as_array(IMAGE) is IMAGE


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(Image.fromarray(IMAGE), id="PIL"),
        pytest.param(Image.fromarray(IMAGE).convert("RGBA"), id="PIL with alpha"),
        pytest.param(torch.from_numpy(IMAGE).permute(2, 0, 1), id="torch"),
    ],
)
def test_other_forms_give_the_same_pixels_tokens_and_scores(image: Any) -> None:
    tokenizer = CharmTokenizer(patch_size=14, max_seq_len=12, selection="gradient")
    np.testing.assert_array_equal(as_array(image), IMAGE)
    np.testing.assert_array_equal(tokenizer(image, key="a").patches, tokenizer(IMAGE, key="a").patches)
    np.testing.assert_array_equal(score_patches(image, "entropy", 28), score_patches(IMAGE, "entropy", 28))


@pytest.mark.parametrize(
    ("image", "came"),
    [
        pytest.param(torch.zeros(3, 8, 9), r"torch\.float32 \(3, 8, 9\): expected .*uint8 \(3, H, W\)", id="float"),
        pytest.param(torch.zeros(8, 9, 3, dtype=torch.uint8), r"torch\.uint8 \(8, 9, 3\)", id="channels last"),
    ],
)
def test_other_tensors_are_refused(image: torch.Tensor, came: str) -> None:
    with pytest.raises(ValueError, match=came):
        as_array(image)


def saved(image: Image.Image, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def turned_by_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.fromarray(IMAGE), "PNG", exif=exif)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(turned_by_exif(), id="turned by its EXIF orientation"),
        pytest.param(saved(Image.fromarray(IMAGE[..., 0].astype(np.uint16) * 257 - 3), "PNG"), id="16 bits"),
        pytest.param(saved(Image.fromarray(np.dstack([IMAGE, IMAGE[..., 1]])), "PNG"), id="transparent"),
        pytest.param(saved(Image.fromarray(IMAGE).convert("LA"), "PNG"), id="grey with alpha"),
        pytest.param(saved(Image.fromarray(IMAGE).quantize(16), "PNG", transparency=3), id="a transparent colour"),
        pytest.param(saved(Image.fromarray(IMAGE).convert("1"), "PNG"), id="black and white"),
        pytest.param(saved(Image.fromarray(IMAGE).convert("CMYK"), "TIFF"), id="CMYK"),
    ],
)
def test_a_file_opened_by_pillow_is_the_image_that_the_pipeline_reads(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(as_array(image), decode_image(data).pixels)


def test_numbers_that_are_no_colours_are_refused() -> None:
    with pytest.raises(ValueError, match="kind of pixels that is not supported, for example floating point"):
        as_array(Image.fromarray(np.zeros((8, 9), np.float32)))
