"""CharmViT: the plain ViT where there is nothing to add, blind to padding, and learning what it should."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from charm.model import CharmViT, create_backbone
from charm.tokenizer import CharmTokenizer
from charm.tokens import Tokens

TINY = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}
TOKENIZER = CharmTokenizer(patch_size=16, max_seq_len=30, budget="fill")
NOISE = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
# Grids of 8 x 6 (two scales, 30 tokens), 2 x 3, 1 x 1 and 4 x 4: only the first leaves no padding.
PICTURES = [NOISE[:128, :96], NOISE[:32, :48], NOISE[:16, :16], NOISE[:64, :64]]


def build(name: str = "vit_tiny_patch16_224", num_scales: int = 2, head: str = "cls", **settings: Any) -> CharmViT:
    """A model whose every parameter matters."""
    model = CharmViT(name, False, num_scales, head=head, **{**TINY, **settings}).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
        model.vit.patch_embed.proj.weight.mul_(0.1)  # noise should not drown positions and scales
        model.head.weight.mul_(5)
    return model


def collate(model: CharmViT, batch: list[Tokens]) -> tuple[Any, ...]:
    names = ("patches", "patch_coord", "scale_id", "patch_valid")
    arrays = [torch.from_numpy(np.stack([getattr(tokens, name) for tokens in batch])) for name in names]
    return *arrays, [model.pos_embed_tables(tokens.grids) for tokens in batch]


def score(model: CharmViT, *pictures: np.ndarray, tokenizer: CharmTokenizer = TOKENIZER) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(*collate(model, [tokenizer(picture) for picture in pictures]))
    return found


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("max_seq_len", [16, 20], ids=["full", "padded"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param("vit_tiny_patch16_224", {}, id="CLS"),
        pytest.param("vit_tiny_patch16_224", {"reg_tokens": 3}, id="registers with positions"),
        pytest.param("vit_small_patch14_reg4_dinov2", {"img_size": 56}, id="registers without positions"),
        pytest.param("vit_base_patch16_clip_224", {}, id="norm before the blocks"),
        pytest.param("charm_demo", {"img_size": 224, "embed_dim": 64, "num_heads": 4}, id="charm_demo"),
    ],
)
def test_a_single_scale_picture_is_scored_as_by_timm(name: str, settings: dict[str, Any], max_seq_len: int) -> None:
    model = build(name, **settings)
    assert model.scale_embed is not None
    model.scale_embed.data.zero_()
    side = model.vit.patch_embed.img_size[0]
    p = model.patch_size
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    room = max_seq_len * (side // p // 4) ** 2
    tokenizer = CharmTokenizer(patch_size=p, max_seq_len=room)
    with torch.no_grad():
        expected = model.head(model.vit(torch.from_numpy(image).permute(2, 0, 1)[None] / 255))
    close(score(model, image, tokenizer=tokenizer), expected)


@pytest.mark.parametrize("fused", [True, False], ids=["fused attention", "plain attention"])
@pytest.mark.parametrize("head", ["cls", "cls_mean"])
@pytest.mark.parametrize("settings", [{}, {"reg_tokens": 4}], ids=["CLS", "registers"])
def test_neither_padding_nor_batch_mates_change_a_score(settings: dict[str, Any], head: str, fused: bool) -> None:
    model = build(head=head, **settings)
    for block in model.vit.blocks:
        block.attn.fused_attn = fused
    alone = torch.cat([score(model, picture) for picture in PICTURES])
    assert alone.std() > 0.01
    close(score(model, *PICTURES), alone)
    close(score(model, *PICTURES[::-1]), alone.flip(0))
    for room in (16, 17, 40):  # the last three pictures fit in each
        close(
            score(model, *PICTURES[1:], tokenizer=CharmTokenizer(patch_size=16, max_seq_len=room)),
            alone[1:],
        )


def test_what_stands_in_the_padding_does_not_matter() -> None:
    model = build()
    patches, coord, scale_id, valid, tables = collate(model, [TOKENIZER(picture) for picture in PICTURES])
    before = [tensor.clone() for tensor in (patches, coord, scale_id, valid)]
    expected = model(patches, coord, scale_id, valid, tables)
    for now, then in zip((patches, coord, scale_id, valid), before, strict=True):
        assert torch.equal(now, then)
    patches[~valid] = 255
    scale_id[~valid] = 1
    close(model(patches, coord, scale_id, valid, tables), expected)


def test_the_order_of_tokens_does_not_matter() -> None:
    model = build(head="cls_mean")
    *arrays, tables = collate(model, [TOKENIZER(picture) for picture in PICTURES])
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    close(model(*(tensor[:, order] for tensor in arrays), tables), model(*arrays, tables))


def test_positions_and_scales_matter() -> None:
    model = build()
    patches, coord, scale_id, valid, tables = collate(model, [TOKENIZER(PICTURES[0])])
    expected = model(patches, coord, scale_id, valid, tables)
    pos_embed = torch.stack([tables[0][s][y, x] for s, (y, x) in zip(scale_id[0], coord[0], strict=True)])[None]
    close(model(patches, coord, scale_id, valid, pos_embed), expected)
    for moved, scaled in ((pos_embed.flip(1), scale_id), (pos_embed, 1 - scale_id)):
        assert (model(patches, coord, scaled, valid, moved) - expected).abs() > 1e-3


def test_the_scale_embedding_learns_and_the_positions_do_not() -> None:
    model = build()
    model(*collate(model, [TOKENIZER(picture) for picture in PICTURES])).sum().backward()
    assert model.scale_embed is not None
    assert model.scale_embed.grad is not None
    assert (model.scale_embed.grad.abs().sum(dim=1) > 0).all()
    assert model.pos_embed.grad is None
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, _ in model.named_parameters()} - learning == {"vit.pos_embed"}
    without = {name for name, p in model.named_parameters() if name in learning and not (p.grad != 0).any()}
    assert without == {"mask_token"}  # padding is never attended to


@pytest.mark.parametrize(
    ("num_scales", "num_outputs", "head", "added"),
    [
        pytest.param(2, 1, "cls", 1152 + 385, id="the paper's 1152 and a head"),
        pytest.param(3, 10, "cls", 4 * 384 + 3850, id="three scales, ten bins"),
        pytest.param(2, 1, "cls_mean", 1152 + 769, id="a head twice as wide"),
        pytest.param(1, 1, "cls", 385, id="one scale adds the head alone"),
    ],
)
def test_parameters_added_to_dinov2_small(num_scales: int, num_outputs: int, head: str, added: int) -> None:
    name, settings = "vit_small_patch14_dinov2", {"img_size": 56, "depth": 1}
    model = CharmViT(name, False, num_scales, num_outputs, head, **settings)
    backbone = create_backbone(name, False, **settings)
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in (model, backbone)]
    assert counts[0] - counts[1] == added
    assert model(*collate(model, [CharmTokenizer(max_seq_len=16)(NOISE[:56, :56])])).shape == (1, num_outputs)


def test_cls_mean_is_the_mean_of_what_is_no_padding() -> None:
    model = build(head="cls_mean", reg_tokens=2)
    seen: list[Tensor] = []
    model.vit.norm.register_forward_hook(lambda _module, _input, output: seen.append(output))
    tokens = TOKENIZER(PICTURES[1])
    assert tokens.seq_len == 6
    found = score(model, PICTURES[1])
    expected = torch.cat([seen[0][0, 0], seen[0][0, 3:9].mean(dim=0)]) @ model.head.weight.T + model.head.bias
    close(found[0], expected.detach())


def test_cls_mean_of_a_backbone_that_normalizes_after_pooling() -> None:
    model = build(head="cls_mean", global_pool="avg")
    assert torch.isfinite(score(model, *PICTURES)).all()


def test_tables_are_the_learnt_positions_on_each_grid() -> None:
    model = build("vit_small_patch14_reg4_dinov2", img_size=56)
    empty, own, other = model.pos_embed_tables([(0, 0), (4, 4), (3, 5)])
    assert (empty.shape, other.shape) == ((0, 0, 48), (3, 5, 48))
    assert torch.equal(own.reshape(16, 48), model.pos_embed[0])
    assert not other.requires_grad


def test_bfloat16_is_near() -> None:
    model = build()
    expected = score(model, *PICTURES)
    with torch.autocast("cpu", torch.bfloat16):
        found = score(model, *PICTURES)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.1)


def test_a_ready_made_backbone_is_taken() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    assert CharmViT(vit).vit is vit


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        pytest.param("swin_tiny_patch4_window7_224", {}, "'swin_tiny_patch4_window7_224' is a SwinTr", id="swin"),
        pytest.param("resnet18", {}, "'resnet18' is a ResNet", id="no transformer"),
        pytest.param("vit_tiny_patch16_224", {"pos_embed": "none", **TINY}, "position embeddings", id="no positions"),
        pytest.param("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, "CLS token", id="no CLS"),
        pytest.param("deit_tiny_distilled_patch16_224", TINY, "deit_tiny_distilled", id="distillation token"),
        pytest.param("vit_tiny_r_s16_p8_224", {}, "vit_tiny_r_s16_p8_224", id="convolutions before the patches"),
        pytest.param("vit_small_patch14_dino", {}, "is not a model of timm .*vit_small_patch14", id="near a known one"),
        pytest.param("nonsense", {}, "'nonsense' is not a model of timm .*none", id="unknown"),
    ],
)
def test_backbones_that_cannot_be_used_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CharmViT(name, False, **settings)


def test_ready_made_backbones_are_checked_too() -> None:
    with pytest.raises(ValueError, match="position embeddings"):
        CharmViT(timm.create_model("vit_tiny_patch16_224", pos_embed="none", **TINY))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"head": "mean"}, "head='mean': expected one of cls, cls_mean"), ({"num_scales": 0}, "num_scales=0")],
    ids=str,
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CharmViT("charm_demo", **settings)


def test_a_rotary_backbone_scores_a_whole_picture_as_timm_does() -> None:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_small_patch16_dinov3",
        pretrained=False,
        num_classes=0,
        depth=2,
        embed_dim=48,
        num_heads=3,
        dynamic_img_size=True,
    ).eval()
    for parameter in vit.parameters():  # timm's initial weights hardly attend
        torch.nn.init.normal_(parameter, std=0.3)
    model = CharmViT(vit, num_scales=1).eval()
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    tokens = CharmTokenizer(16, max_seq_len=24)(image)
    arrays = [torch.from_numpy(array)[None] for array in (tokens.patches, tokens.patch_coord)]
    valid = torch.from_numpy(tokens.patch_valid)[None]
    tables = [model.pos_embed_tables(tokens.grids[-1:])]
    found = model(*arrays, torch.zeros_like(valid, dtype=torch.uint8), valid, tables)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(found, model.head(vit.forward_features(pixels)[:, 0]), atol=1e-5, rtol=1e-5)
    elsewhere = model(*arrays, torch.zeros_like(valid, dtype=torch.uint8), valid, [[tables[0][0].roll(1, 0)]])
    assert (elsewhere - found).abs().max() > 1e-4


def test_a_coarse_token_of_a_rotary_backbone_stands_amid_the_native_ones_that_it_stands_for() -> None:
    model = CharmViT("vit_small_patch16_dinov3", pretrained=False, depth=1, embed_dim=48, num_heads=3)
    coarse, middle = model.pos_embed_tables([(3, 5), (9, 15)])
    torch.testing.assert_close(coarse, middle[1::3, 1::3], atol=1e-6, rtol=0)
