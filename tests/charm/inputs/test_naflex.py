"""The NaFlex input: the size that fits a budget, and parity with timm's own NaFlex model."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.data.naflex_transforms import get_image_size_for_seq
from timm.models.naflexvit import checkpoint_filter_fn

from charm.inputs.naflex import NaFlexInput, fit_budget
from charm.inputs.settings import NaFlexSettings
from charm.model.vit import CharmViT


def test_the_size_is_the_one_of_timms_search() -> None:
    """Which enlarges at most a hundred times: of images of a few pixels ours are larger."""
    rng = np.random.default_rng(0)
    for _ in range(1000):
        height, width = (int(side) for side in np.exp(rng.uniform(np.log(30), np.log(5000), 2)).round())
        patch_size, budget = int(rng.choice([14, 16, 32])), int(rng.integers(16, 1025))
        _, expected = get_image_size_for_seq((height, width), patch_size, budget)
        made = NaFlexInput(patch_size, budget).frame_hw((height, width))
        assert made == tuple(expected), (height, width, patch_size, budget)


@pytest.mark.parametrize("budget", [1, 7, 96])
def test_no_larger_ratio_fits(budget: int) -> None:
    """By trying every ratio at which one axis is of whole patches."""
    for height in range(1, 40, 3):
        for width in range(1, 40, 2):
            ratios = {Fraction(count, side) for side in (height, width) for count in range(1, budget + 1)}
            grids = [(-(-height * ratio // 1), -(-width * ratio // 1), ratio) for ratio in ratios]
            best = max((grid for grid in grids if grid[0] * grid[1] <= budget), key=lambda grid: grid[2])
            assert fit_budget((height, width), budget) == best[:2]


def test_without_enlarging_native_pixels_are_kept() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 61, 3), dtype=np.uint8)
    made = NaFlexInput(14, 96, NaFlexSettings(enlarge=False))
    assert made.grids((50, 61)) == ((4, 5),)
    np.testing.assert_array_equal(made.frame(image)[3:53, 4:65], image)
    assert made.length((500, 610)) > 80


@pytest.mark.parametrize("image_hw", [(480, 640), (90, 400)], ids=str)
def test_parity_with_timms_naflex_model(image_hw: tuple[int, int]) -> None:
    """timm's NaFlexVit on the same patches, with the same tensors under their own names, gives the same features."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"pretrained": False, "num_classes": 0, "depth": 3}
    plain: Any = timm.create_model("vit_tiny_patch16_224", **settings).eval()
    settings |= {"use_naflex": True, "pos_embed_interp_mode": "bilinear", "pos_embed_antialias": False}
    naflex: Any = timm.create_model("vit_tiny_patch16_224", **settings).eval()
    with torch.no_grad():
        torch.nn.init.normal_(plain.pos_embed, std=0.5)
        naflex.load_state_dict(checkpoint_filter_fn(plain.state_dict(), naflex), strict=True)
        naflex.embeds.cls_token += plain.pos_embed[:, :1]  # which timm leaves out when it converts the weights
        image = np.random.default_rng(1).integers(0, 256, (*image_hw, 3), dtype=np.uint8)
        tokens = NaFlexInput(16, 310)(image)
        assert tokens.seq_len < 310  # some padding
        patches = torch.from_numpy(tokens.patches).flatten(1)[None].float() / 255
        valid = torch.from_numpy(tokens.patch_valid)[None]
        coord = torch.from_numpy(tokens.patch_coord)[None].long()
        expected = naflex.forward_features(patches, coord, valid)["patches"][:, 0]

        model = CharmViT(plain, num_scales=1).eval()
        model.head = torch.nn.Identity()  # type: ignore[assignment]
        model.head.weight = torch.zeros(1)  # type: ignore[assignment]
        found = model(
            torch.from_numpy(tokens.patches)[None],
            coord,
            torch.from_numpy(tokens.scale_id)[None],
            valid,
            [model.pos_embed_tables(tokens.grids)],
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
