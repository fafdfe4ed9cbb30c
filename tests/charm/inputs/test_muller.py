"""The planes of the learnt resizer, against its formula written in torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from charm.inputs.muller import MullerInput, measure_bands
from charm.inputs.settings import MullerSettings
from charm.tokenization.tokens import RESIDUAL_UNIT

PUBLISHED = ((1.892, -11.295), (-0.014, 0.003))


def blur(x: Tensor, border: str) -> Tensor:
    taps = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / 2)
    taps = taps / taps.sum()
    padded = F.pad(x, (2, 2, 2, 2), mode="reflect") if border == "reflect" else F.pad(x, (2, 2, 2, 2))
    kernel = (taps[:, None] * taps[None]).expand(3, 1, 5, 5)
    return F.conv2d(padded, kernel, groups=3)


def resize_with(image: np.ndarray, size: int, scale: tuple[float, ...], bias: tuple[float, ...], border: str) -> Tensor:
    """The definition, (size, size, 3)."""
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255

    def shrink(image: Tensor) -> Tensor:
        return F.interpolate(image, size=(size, size), mode="bilinear", antialias=False)

    y, sharp = shrink(x), x
    for a, b in zip(scale, bias, strict=True):
        blurred = blur(sharp, border)
        y = y + torch.tanh(a * shrink(blurred - sharp) + b)
        sharp = blurred
    return y[0].permute(1, 2, 0)


@pytest.mark.parametrize("border", ["zero", "reflect"])
@pytest.mark.parametrize("image_hw", [(300, 411), (40, 33)], ids=["smaller", "larger"])
def test_planes_give_the_resizer_of_the_definition(image_hw: tuple[int, int], border: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*image_hw, 3), dtype=np.uint8)
    made = MullerInput(14, MullerSettings(56, "published", border))  # type: ignore[arg-type]
    scale, bias = PUBLISHED
    bands = measure_bands(image, (56, 56), border)
    base = resize_with(image, 56, (), (), border).numpy()
    whole = base + sum(np.tanh(a * band + b) for a, b, band in zip(scale, bias, bands, strict=True))
    np.testing.assert_allclose(whole, resize_with(image, 56, scale, bias, border).numpy(), atol=5e-5)
    assert np.abs(made.frame(image) / 255 - base).max() < 1 / 255  # whole levels, by weights of 11 bits

    tokens = made(image)
    assert tokens.residuals is not None
    assert (tokens.residuals.shape, tokens.residuals.dtype) == ((16, 14, 14, 6), np.int16)
    joined = tokens.residuals.reshape(4, 4, 14, 14, 2, 3).transpose(4, 0, 2, 1, 3, 5).reshape(2, 56, 56, 3)
    np.testing.assert_allclose(joined * RESIDUAL_UNIT, bands, atol=RESIDUAL_UNIT)


def test_of_one_colour_there_is_no_detail_but_at_a_border_of_zeros() -> None:
    """Flat grey of 0.8 with the published numbers: 0.789, and more than white in the border row of the original."""
    image = np.full((224, 224, 3), 204, np.uint8)
    (a1, a2), (b1, b2) = PUBLISHED
    seen = {}
    for border in ("zero", "reflect"):
        first, second = measure_bands(image, (224, 224), border)
        seen[border] = 0.8 + np.tanh(a1 * first + b1) + np.tanh(a2 * second + b2)
    assert seen["reflect"].min() == pytest.approx(0.789, abs=5e-4)
    assert seen["reflect"].max() == pytest.approx(0.789, abs=5e-4)
    assert seen["zero"][112, 112, 0] == pytest.approx(0.789, abs=5e-4)
    assert seen["zero"][0, 112, 0] > 1.15
