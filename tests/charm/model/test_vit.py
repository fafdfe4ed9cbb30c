"""CharmViT: the plain ViT where there is nothing to add, blind to padding, and learning what it should."""

import re
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from charm.model.backbones import create_backbone
from charm.model.vit import CharmViT
from charm.tokenization.tokenizer import CharmTokenizer
from charm.tokenization.tokens import Tokens, stack_tokens

TINY = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}
TOKENIZER = CharmTokenizer(patch_size=16, max_seq_len=30, budget="fill")
NOISE = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
# Grids of 8 x 6 (two scales, 30 tokens), 2 x 3, 1 x 1 and 4 x 4: only the first leaves no padding.
IMAGES = [NOISE[:128, :96], NOISE[:32, :48], NOISE[:16, :16], NOISE[:64, :64]]


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


def score(model: CharmViT, *images: np.ndarray, tokenizer: CharmTokenizer = TOKENIZER) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(*collate(model, [tokenizer(image) for image in images]))
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
        pytest.param("vit_base_patch32_224", {"img_size": 128}, id="patches of 32"),
        pytest.param("charm_demo", {"img_size": 224, "embed_dim": 64, "num_heads": 4}, id="charm_demo"),
    ],
)
def test_a_single_scale_image_is_scored_as_by_timm(name: str, settings: dict[str, Any], max_seq_len: int) -> None:
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
@pytest.mark.parametrize("head", ["cls", "cls_mean", "mean", "map"])
@pytest.mark.parametrize("settings", [{}, {"reg_tokens": 4}], ids=["CLS", "registers"])
def test_neither_padding_nor_batch_mates_change_a_score(settings: dict[str, Any], head: str, fused: bool) -> None:
    model = build(head=head, **settings, **({"global_pool": "map"} if head == "map" else {}))
    for block in model.vit.blocks:
        block.attn.fused_attn = fused
    if head == "map":
        model.vit.attn_pool.fused_attn = fused
    alone = torch.cat([score(model, image) for image in IMAGES])
    assert alone.std() > 0.01
    close(score(model, *IMAGES), alone)
    close(score(model, *IMAGES[::-1]), alone.flip(0))
    for room in (16, 17, 40):  # the last three images fit in each
        close(
            score(model, *IMAGES[1:], tokenizer=CharmTokenizer(patch_size=16, max_seq_len=room)),
            alone[1:],
        )


def test_what_stands_in_the_padding_does_not_matter() -> None:
    model = build()
    patches, coord, scale_id, valid, tables = collate(model, [TOKENIZER(image) for image in IMAGES])
    before = [tensor.clone() for tensor in (patches, coord, scale_id, valid)]
    expected = model(patches, coord, scale_id, valid, tables)
    for now, then in zip((patches, coord, scale_id, valid), before, strict=True):
        assert torch.equal(now, then)
    patches[~valid] = 255
    scale_id[~valid] = 1
    close(model(patches, coord, scale_id, valid, tables), expected)


def test_a_batch_of_a_tokenizer_is_scored_as_its_parts() -> None:
    model, tokens = build(), [TOKENIZER(image) for image in IMAGES]
    with torch.no_grad():
        assert torch.equal(model(stack_tokens(tokens)), model(*collate(model, tokens)))
    with pytest.raises(TypeError, match="expected a batch of a tokenizer, or patches, patch_coord"):
        model(torch.from_numpy(tokens[0].patches))


def test_the_order_of_tokens_does_not_matter() -> None:
    model = build(head="cls_mean")
    *arrays, tables = collate(model, [TOKENIZER(image) for image in IMAGES])
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    close(model(*(tensor[:, order] for tensor in arrays), tables), model(*arrays, tables))


def test_positions_and_scales_matter() -> None:
    model = build()
    patches, coord, scale_id, valid, tables = collate(model, [TOKENIZER(IMAGES[0])])
    expected = model(patches, coord, scale_id, valid, tables)
    pos_embed = torch.stack([tables[0][s][y, x] for s, (y, x) in zip(scale_id[0], coord[0], strict=True)])[None]
    close(model(patches, coord, scale_id, valid, pos_embed), expected)
    for moved, scaled in ((pos_embed.flip(1), scale_id), (pos_embed, 1 - scale_id)):
        assert (model(patches, coord, scaled, valid, moved) - expected).abs() > 1e-3


def test_the_scale_embedding_learns_and_the_positions_do_not() -> None:
    model = build()
    model(*collate(model, [TOKENIZER(image) for image in IMAGES])).sum().backward()
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
    tokens = TOKENIZER(IMAGES[1])
    assert tokens.seq_len == 6
    found = score(model, IMAGES[1])
    expected = torch.cat([seen[0][0, 0], seen[0][0, 3:9].mean(dim=0)]) @ model.head.weight.T + model.head.bias
    close(found[0], expected.detach())


def test_without_a_cls_token_the_mean_is_read() -> None:
    """As in timm's SigLIP with average pooling; attention pooling is left out, and nothing of it is left to train."""
    settings = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3}
    with pytest.raises(ValueError, match="head='cls' reads a CLS token, and this backbone has none: choose mean"):
        CharmViT("vit_base_patch16_siglip_224", False, **settings)
    model = build("vit_base_patch16_siglip_224", head="mean")
    assert not any("attn_pool" in name for name, _ in model.named_parameters())
    averaging = timm.create_model("vit_base_patch16_siglip_gap_224", num_classes=0, **settings)
    averaging.load_state_dict(model.vit.state_dict())
    assert model.scale_embed is not None
    model.scale_embed.data.zero_()
    with torch.no_grad():
        expected = model.head(averaging.eval()(torch.from_numpy(IMAGES[3]).permute(2, 0, 1)[None] / 255))
    close(score(model, IMAGES[3]), expected)


def test_cls_mean_of_a_backbone_that_normalizes_after_pooling() -> None:
    model = build(head="cls_mean", global_pool="avg")
    assert torch.isfinite(score(model, *IMAGES)).all()


def test_tables_are_the_learnt_positions_on_each_grid() -> None:
    model = build("vit_small_patch14_reg4_dinov2", img_size=56)
    empty, own, other = model.pos_embed_tables([(0, 0), (4, 4), (3, 5)])
    assert (empty.shape, other.shape) == ((0, 0, 48), (3, 5, 48))
    assert torch.equal(own.reshape(16, 48), model.pos_embed[0])
    assert not other.requires_grad


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("num_scales", [1, 2])
def test_autocast_is_near_and_neither_pixels_nor_scores_are_rounded(num_scales: int, kind: torch.dtype) -> None:
    model = build(num_scales=num_scales)
    images = IMAGES if num_scales == 2 else IMAGES[1:]
    read: list[Tensor] = []
    model.vit.norm_pre.register_forward_hook(lambda _module, _input, output: read.append(output))
    inputs = collate(model, [TOKENIZER(image) for image in images])
    with torch.no_grad():
        expected = model(*inputs)
        with torch.autocast("cpu", kind):
            found = model(*inputs)
    torch.testing.assert_close(read[1], read[0])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.1)
    assert not torch.equal(found.to(kind).float(), found)


def test_a_mask_is_built_only_where_there_is_padding() -> None:
    model = build()
    masks: list[Tensor | None] = []
    for block in model.vit.blocks:
        block.register_forward_pre_hook(
            lambda _module, _input, keywords: masks.append(keywords["attn_mask"]), with_kwargs=True
        )
    score(model, IMAGES[0])
    assert masks == [None, None]
    score(model, *IMAGES[:2])
    assert [None if mask is None else mask.shape for mask in masks[2:]] == [(2, 1, 1, 31)] * 2


def test_checkpointing_of_activations_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build()
        model.vit.set_grad_checkpointing(checkpointing)
        model(*collate(model, [TOKENIZER(image) for image in IMAGES])).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_normalization_is_that_of_the_backbone() -> None:
    """Scores are those of a model whose patch projection normalizes by itself."""
    model, plain = (
        build("vit_small_patch14_dinov2", img_size=56, normalize=True),
        build("vit_small_patch14_dinov2", img_size=56),
    )
    assert model.state_dict().keys() == plain.state_dict().keys()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    projection = plain.vit.patch_embed.proj
    with torch.no_grad():
        projection.weight /= std[:, None, None]
        projection.bias -= torch.einsum("dcij,c->d", projection.weight, mean)
    tokenizer = CharmTokenizer(patch_size=14, max_seq_len=30)
    close(score(model, *IMAGES, tokenizer=tokenizer), score(plain, *IMAGES, tokenizer=tokenizer))


def test_layers_are_counted_from_the_patches_to_the_head() -> None:
    model = build("vit_base_patch16_clip_224", reg_tokens=1)
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert model.num_layers == 4
    before = {"vit.cls_token", "vit.reg_token", "vit.pos_embed", "vit.patch_embed.proj.weight", "vit.norm_pre.weight"}
    assert {layers[name] for name in before} == {0}
    assert {layer for name, layer in layers.items() if name.startswith("vit.blocks.1.")} == {2}
    after = {"vit.norm.weight", "head.weight", "head.bias", "scale_embed", "mask_token"}
    assert {name for name, layer in layers.items() if layer == 3} == after | {"vit.norm.bias"}


def test_trained_position_embeddings_learn() -> None:
    model = build(train_pos_embed=True)
    assert build().trained_grid is None
    assert model.trained_grid is not None
    patches, coord, scale_id, valid, _ = collate(model, [TOKENIZER(IMAGES[0])])
    model(
        patches, coord, scale_id, valid, model.trained_grid.reshape(1, 16, 48)[:, :1].expand(1, 30, 48)
    ).sum().backward()
    gradient = model.pos_embed.grad
    assert gradient is not None
    assert (gradient[0].abs().sum(dim=1) > 0).tolist() == [True, True] + [False] * 15  # CLS, and the one that was used
    model.zero_grad()
    model(*collate(model, [TOKENIZER(IMAGES[0])])).sum().backward()  # by the tables of its grids
    gradient = model.pos_embed.grad
    assert gradient is not None
    assert (gradient[0].abs().sum(dim=1) > 0).all()
    with pytest.raises(ValueError, match="rotary position embeddings are not learnt"):
        CharmViT("vit_small_patch16_dinov3", False, train_pos_embed=True, depth=1, embed_dim=48, num_heads=3)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("vit_tiny_patch16_224", "cls"),
        ("vit_base_patch16_siglip_224", "mean"),
        ("vit_medium_patch16_reg4_gap_256", "mean"),
        ("vit_small_patch16_dinov3", "cls"),
    ],
)
def test_a_ready_made_backbone_is_taken_without_its_classifier(name: str, head: str) -> None:
    settings = {key: value for key, value in TINY.items() if "dinov3" not in name or key != "img_size"}
    vit = timm.create_model(name, num_classes=10, **settings)
    kept = {key: value.clone() for key, value in vit.state_dict().items() if not re.match("head|attn_pool", key)}
    model = CharmViT(vit, head=head)
    assert model.vit is vit
    assert vit.state_dict().keys() == kept.keys()
    assert all(torch.equal(vit.state_dict()[key], value) for key, value in kept.items())
    model(*collate(model, [TOKENIZER(image) for image in IMAGES])).sum().backward()
    without = {key for key, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None}
    assert not without


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_tables_are_not_rounded_by_autocast(name: str) -> None:
    settings = {key: value for key, value in TINY.items() if "dinov3" not in name or key != "img_size"}
    model = CharmViT(name, False, **settings)
    expected = model.pos_embed_tables([(3, 5), (6, 10)])
    with torch.autocast("cpu", torch.bfloat16):
        found = model.pos_embed_tables([(3, 5), (6, 10)])
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert found[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"head": "max"}, "head='max': expected one of cls, cls_mean, mean, map", id="unknown head"),
        pytest.param({"num_scales": 0}, "num_scales=0", id="no scale"),
        pytest.param({"pos_drop_rate": 0.1}, "pos_drop_rate=0.1: there is no such dropping", id="no effect"),
        pytest.param({"normalize": True}, "nobody published the mean", id="normalization that nobody published"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CharmViT("charm_demo", **settings)


def test_a_rotary_backbone_scores_a_whole_image_as_timm_does() -> None:
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


def test_a_backbone_that_was_trained_on_the_mean_gives_its_features() -> None:
    """Its last norm comes after the mean."""
    vit = timm.create_model("vit_medium_patch16_reg4_gap_256", num_classes=0, **TINY).eval()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = CharmViT(vit, num_scales=1, head="mean").eval()
    image = IMAGES[3]
    inputs = collate(model, [CharmTokenizer(16, max_seq_len=16)(image)])
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None] / 255
    expected = model.head(vit.forward_head(vit.forward_features(pixels), pre_logits=True))
    torch.testing.assert_close(model(*inputs), expected, atol=1e-5, rtol=1e-5)


def test_a_image_without_a_token_has_a_score() -> None:
    model = build(head="cls_mean")
    patches, coord, scale_id, valid, tables = collate(model, [TOKENIZER(IMAGES[0])])
    assert model(patches, coord, scale_id, torch.zeros_like(valid), tables).isfinite().all()
