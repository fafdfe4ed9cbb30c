"""Which backbones can be used, each by its own name and, to be quick, at a tiny size."""

from typing import Any

import pytest
import timm
import torch

from charm.model.backbones import check_backbone, create_backbone
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
        pytest.param("naflexvit_base_patch16_gap", {}, r"is not supported \(timm's NaFlexVit\)", id="NaFlexViT"),
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
