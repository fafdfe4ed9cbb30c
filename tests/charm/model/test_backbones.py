"""Which backbones can be used, each by its own name and, to be quick, at a tiny size."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from charm.model.backbones import BackboneError, check_backbone, create_backbone, unpack_naflex
from charm.model.pos_embed import gather_pos_embed, resample_pos_embed
from charm.model.vit import CharmViT
from charm.tokenization.tokenizer import CharmTokenizer

TINY = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch16_224.augreg_in21k_ft_in1k",
        "vit_small_patch16_384",
        "vit_base_patch16_224.dino",
        "vit_base_patch32_224",
        "vit_base_patch16_224.orig_in21k",
        "vit_small_patch14_dinov2.lvd142m",
        "vit_base_patch14_dinov2",
        "vit_large_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2",
        "vit_base_patch16_clip_224.openai",
        "vit_base_patch32_clip_quickgelu_224",
        "vit_base_patch16_siglip_224.webli",
        "vit_so400m_patch14_siglip_gap_384",
        "vit_small_patch16_dinov3",
    ],
)
def test_every_part_of_it_is_trained(name: str) -> None:
    """A parameter without a gradient would hold up training on several devices."""
    patch = int(name.split("patch")[1][:2])
    settings = {} if "dinov3" in name else {"img_size": 4 * patch}
    head = "mean" if "siglip" in name else "cls"
    model = CharmViT(name, False, num_outputs=3, head=head, normalize=True, **{**TINY, **settings})
    tokens = CharmTokenizer(patch_size=patch, max_seq_len=12)(
        [torch.zeros(3, 5 * patch, 4 * patch, dtype=torch.uint8)] * 2
    )
    arrays = [torch.from_numpy(x) for x in (tokens.patches, tokens.patch_coord, tokens.scale_id, tokens.patch_valid)]
    output = model(*arrays, [model.pos_embed_tables(grids) for grids in tokens.grids])
    assert output.shape == (2, 3)
    output.sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        pytest.param("swin_tiny_patch4_window7_224", {}, r"timm's SwinTransformer\).*\(paper, section 20\)", id="swin"),
        pytest.param("resnet18", {}, "'resnet18' is not supported .timm's ResNet", id="no transformer"),
        pytest.param("vit_tiny_patch16_224", {"pos_embed": "none", **TINY}, "without learnt", id="no positions"),
        pytest.param("eva02_tiny_patch14_224", {}, r"is not supported \(timm's Eva\)", id="EVA-02"),
        pytest.param("vit_pe_core_tiny_patch16_384", {}, r"is not supported \(timm's Eva\)", id="PE"),
        pytest.param("deit_tiny_distilled_patch16_224", TINY, "deit_tiny_distilled", id="distillation token"),
        pytest.param("vit_tiny_r_s16_p8_224", {}, "vit_tiny_r_s16_p8_224", id="convolutions before the patches"),
        pytest.param(
            "vit_tiny_patch16_224", {"in_chans": 1, **TINY}, "16 x 16 pixels in 1 channels: expected square", id="grey"
        ),
        pytest.param(
            "vit_tiny_patch16_224",
            TINY | {"img_size": (64, 144)},
            "a grid of 4 x 9 tokens: expected a square",
            id="4 x 9",
        ),
        pytest.param("vit_small_patch14_dino", {}, "is not a model of timm .*vit_small_patch14", id="near a known one"),
        pytest.param("vit_tiny_patch16_224.mine", {}, r"no such weights; known: vit_tiny_patch16_224\.", id="tag"),
        pytest.param("charm_demo.mine", {}, "no such weights; known: none", id="tag where no weights are published"),
        pytest.param("nonsense", {}, "'nonsense' is not a model of timm .*none", id="unknown"),
    ],
)
def test_backbones_that_cannot_be_used_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone(name, False, **settings)


def test_ready_made_backbones_are_checked_too() -> None:
    with pytest.raises(ValueError, match="position embeddings"):
        check_backbone(timm.create_model("vit_tiny_patch16_224", pos_embed="none", **TINY), "mine")


def test_unusable_weights_are_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    create_model = timm.create_model

    def create(name: str, pretrained: bool = False, **settings: Any) -> Any:
        asked.append(pretrained)
        return create_model(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(ValueError, match=r"paper, section 20"):
        create_backbone("swin_tiny_patch4_window7_224")
    assert asked == [False]


def test_a_look_before_the_download_draws_no_random_numbers() -> None:
    torch.manual_seed(0)
    with_look = create_backbone("charm_demo", pretrained=True).state_dict()
    torch.manual_seed(0)
    without = create_backbone("charm_demo", pretrained=False).state_dict()
    assert all(torch.equal(with_look[name], without[name]) for name in without)


NAFLEX = {"depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 0}


def naflex(name: str = "naflexvit_base_patch16_siglip.v2_webli", **settings: Any) -> Any:
    """Random weights of which each matters."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **NAFLEX, **settings).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim < 4 else 1.0)
    return model


def draw_grid(height: int, width: int, padding: int = 10) -> list[Tensor]:
    """Patches, their places, and which of them are no padding, of one image of noise."""
    count = height * width + padding
    patches = torch.randint(0, 256, (1, count, 16, 16, 3), dtype=torch.uint8)
    index = torch.arange(count) * (torch.arange(count) < height * width)
    coord = torch.stack([index // width, index % width], dim=1)[None]
    return [patches, coord, (torch.arange(count) < height * width)[None]]


@pytest.mark.parametrize("grid", [(16, 16), (19, 26), (5, 40), (33, 7), (1, 1)], ids=str)
@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("naflexvit_base_patch16_siglip.v2_webli", "mean"),
        ("naflexvit_base_patch16_siglip.v2_webli", "map"),
        ("naflexvit_base_patch16_gap", "mean"),  # registers, layer scale, a norm after the mean
    ],
)
def test_a_naflex_vit_is_a_plain_one_with_antialiased_positions(name: str, head: str, grid: tuple[int, int]) -> None:
    original = naflex(name)
    model = CharmViT(unpack_naflex(copy.deepcopy(original)), num_scales=1, head=head).eval()  # type: ignore[arg-type]
    patches, coord, valid = draw_grid(*grid)
    prefix = model.vit.num_prefix_tokens
    mode = original.embeds.pos_embed_interp_mode
    tables = model.pos_embed_tables([grid], mode)
    positions = gather_pos_embed(tables, coord[0], torch.zeros(coord.shape[1]))[None]
    arguments = (patches, coord, torch.zeros(coord.shape[:2]), valid, positions)
    with torch.no_grad():
        read = original.forward_features((patches / 255).flatten(2), patch_coord=coord, patch_valid=valid)["patches"]
        if head == "map":
            expected = original.forward_head(read, pre_logits=True, patch_valid=valid)
        else:
            expected = original.fc_norm(read[:, prefix : prefix + grid[0] * grid[1]].mean(1))
        scale = expected.abs().max()
        torch.testing.assert_close(model.features(*arguments) / scale, expected / scale, atol=1e-6, rtol=0)
    sampled = resample_pos_embed(model.pos_embed, grid, mode, False, model.num_pos_prefix)
    if mode == "bilinear":  # bicubic antialiasing has another curve on grids of any size
        assert ((sampled - tables[0]).abs().max() > 0.1) == (min(grid) < 16)


def test_the_published_siglip_2_is_built_as_one() -> None:
    """With its tanh GELU, its mean and deviation, and antialiasing whatever is asked for."""
    model = CharmViT("naflexvit_base_patch16_siglip.v2_webli", False, num_scales=1, head="map", normalize=True)
    assert {type(block.mlp.act).__name__ for block in model.vit.blocks} == {"GELUTanh"}
    assert (len(model.vit.blocks), model.patch_size, model.num_pos_prefix) == (12, 16, 0)
    assert model.learnt_grid is not None
    assert model.learnt_grid.shape == (16, 16, 768)
    assert model.pixel_mean.tolist() == [0.5, 0.5, 0.5]  # type: ignore[union-attr]
    assert model.backbone.pretrained_cfg["hf_hub_id"] == "timm/naflexvit_base_patch16_siglip.v2_webli"  # type: ignore[index]
    assert model.pos_embed_config("bilinear", False).antialias
    assert not CharmViT("charm_demo").pos_embed_config("bilinear", False).antialias
    assert round(sum(parameter.numel() for parameter in model.vit.parameters()) / 1e6, 1) == 92.9


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param("naflexvit_base_patch16_parfac_gap", {}, id="factorized positions"),
        pytest.param("naflexvit_base_patch16_par_gap", {}, id="positions in proportion"),
        pytest.param("naflexvit_base_patch16_gap", {"rope_type": "axial"}, id="rotary besides"),
        pytest.param("naflexvit_base_patch16_gap", {"embed_proj_type": "conv"}, id="convolution"),
    ],
)
def test_a_naflex_vit_that_is_more_than_a_plain_one_is_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(BackboneError, match=r"is not supported \(timm.s NaFlexVit"):
        create_backbone(name, False, **{key: NAFLEX[key] for key in ("depth", "embed_dim", "num_heads")}, **settings)


@pytest.mark.parametrize("fused", [True, False], ids=["fused attention", "plain attention"])
def test_attention_pooling_is_the_backbones_own(fused: bool) -> None:
    """As timm scores a whole image; over padding, too."""
    torch.manual_seed(0)
    vit = timm.create_model("vit_base_patch16_siglip_224", num_classes=0, **TINY).eval()
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    image = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = vit(image.permute(2, 0, 1)[None] / 255)
        model = CharmViT(vit, num_scales=1, head="map").eval()
        model.vit.attn_pool.fused_attn = fused
        for room in (16, 20):
            tokens = CharmTokenizer(patch_size=16, max_seq_len=room)(image.permute(2, 0, 1))
            arrays = (tokens.patches, tokens.patch_coord, tokens.scale_id, tokens.patch_valid)
            model.score_features = lambda features: features  # type: ignore[method-assign]
            batch = [torch.from_numpy(array)[None] for array in arrays]
            found = model(*batch, [model.pos_embed_tables(tokens.grids)])
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="head='map' is attention pooling that was pre-trained, and this backbone has"):
        CharmViT("charm_demo", head="map")
