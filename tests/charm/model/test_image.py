"""ImageModel: the image is put together exactly, and timm's model does with it what it does."""

import copy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from charm.attribution import attribute_tokens
from charm.export import export_program
from charm.inputs.registry import INPUTS, build_input
from charm.inputs.settings import SETTINGS
from charm.model.config import ViTConfig
from charm.model.image import ImageModel, join_patches
from charm.model.registry import build_model
from charm.tokenization.augment import IDENTITY, apply_symmetry
from charm.tokenization.tokenizer import CharmTokenizer
from charm.tokenization.tokens import Tokens
from tests.charm.tokenization.test_tokenizer import SYMMETRIES
from tests.conftest import draw_image
from tests.untrained import SMALL

# A Swin of four blocks; its windows of 7 x 7 tokens are as wide as 28 pixels.
SWIN: dict[str, Any] = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)}
BACKBONES: dict[str, dict[str, Any]] = {
    "swin_tiny_patch4_window7_224": SWIN,
    "resnet18": {},
    "test_convnext": {},  # its features pass a norm after the last block
    "test_maxvit": {},  # another architecture whose windows are made for one size
    "beit_base_patch16_224": {"depth": 1, "embed_dim": 24, "num_heads": 2},  # has a CLS token and relative positions
}
WHOLE = [name for name in INPUTS if SETTINGS[name]().whole_edge is not None]


def build(name: str, edge: int = 64, **more: Any) -> ImageModel:
    torch.manual_seed(0)
    return ImageModel(name, edge, False, **BACKBONES.get(name, {}), **more).eval()


def cut(edge: int, patch_size: int = 16, name: str = "standard", symmetry: Any = IDENTITY, seed: int = 0) -> Tokens:
    crop = {"edge": edge, "crop": edge, "place": "centre", "resize": "squash"}
    settings = crop if name == "standard" else SMALL[name]
    made = build_input(name, settings, CharmTokenizer(patch_size, max_seq_len=2**16))
    return made(draw_image(90, 120, seed), symmetry=symmetry)


def collate(*tokens: Tokens) -> list[Tensor]:
    names = ("patches", "patch_coord", "scale_id", "patch_valid")
    arrays = [torch.from_numpy(np.stack([getattr(one, name) for one in tokens])) for name in names]
    return [*arrays, torch.zeros(*arrays[3].shape, 0)]


@pytest.mark.parametrize("symmetry", SYMMETRIES, ids=str)
@pytest.mark.parametrize("name", WHOLE)
def test_the_image_is_put_together_to_the_byte_however_it_is_turned(name: str, symmetry: Any) -> None:
    plain, turned = (cut(84, 14, name, turn) for turn in (IDENTITY, symmetry))
    joined = join_patches(*collate(turned)[:2])
    expected = apply_symmetry(plain.to_image(), symmetry)
    np.testing.assert_array_equal(joined[0].permute(1, 2, 0).numpy(), expected)
    assert joined.dtype == torch.uint8


def test_what_is_no_square_is_refused() -> None:
    with pytest.raises(ValueError, match="6 patches are no square image"):
        join_patches(torch.zeros(1, 6, 4, 4, 3), torch.zeros(1, 6, 2))


@pytest.mark.parametrize("normalize", [False, True], ids=["as they are", "normalized"])
@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_the_mean_of_timms(name: str, normalize: bool) -> None:
    model = build(name, normalize=normalize)
    tokens = cut(64)
    image = torch.from_numpy(tokens.to_image()).permute(2, 0, 1)[None] / 255
    if normalize:
        facts = model.backbone.pretrained_cfg
        mean, std = (torch.tensor(facts[key])[:, None, None] for key in ("mean", "std"))  # type: ignore[index]
        image = (image - mean) / std
    with torch.no_grad():
        features = model.backbone.forward_head(model.backbone.forward_features(image))  # type: ignore[operator]
        if features.ndim == 3:
            expected = features[:, getattr(model.backbone, "num_prefix_tokens", 0) :].mean(1)
        else:
            expected = features.mean((1, 2) if "swin" in name else (2, 3))
        found = model.features(*collate(tokens))
        assert torch.equal(model(*collate(tokens)), model.score_features(found))
    torch.testing.assert_close(found, expected, atol=1e-6 if features.ndim == 4 and "swin" not in name else 0, rtol=0)


def test_first_mean_reads_the_corner_beside_the_others() -> None:
    """As the published code, which takes Swin's first token for a CLS token."""
    model = build("swin_tiny_patch4_window7_224", 224, head="first_mean")
    patches, coord, *others = collate(cut(224))
    with torch.no_grad():
        grid = model.backbone.forward_features(join_patches(patches, coord) / 255)  # type: ignore[operator]
        found = model.features(patches, coord, *others)
    assert grid.shape == (1, 7, 7, 192)
    expected = torch.cat([grid[:, 0, 0], (grid.sum((1, 2)) - grid[:, 0, 0]) / 48], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_part_of_it_is_trained_and_a_score_is_the_images_own(name: str) -> None:
    """Also in training mode, where batch norms would read the whole batch, and paths be dropped at random."""
    model = build(name, num_outputs=3).train()
    before = {key: value.clone() for key, value in model.named_buffers()}
    batch = collate(cut(64), cut(64, seed=1))
    output = model(*batch)
    output.sum().backward()
    assert [key for key, one in model.named_parameters() if one.grad is None] == []
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
    alone = torch.cat([model(*(array[[row]] for array in batch)) for row in (0, 1)])
    torch.testing.assert_close(output, alone, atol=1e-5, rtol=1e-5)
    assert (output[0] - output[1]).abs().max() > 1e-4


@pytest.mark.parametrize(("edge", "window", "gmacs"), [(224, 7, 8.74), (384, 12, 26.99)])
def test_swin_small_at_two_sizes(edge: int, window: int, gmacs: float) -> None:
    """Windows keep their share of the image; 48.8 million parameters."""
    with torch.device("meta"), FlopCounterMode(display=False) as products, torch.no_grad():
        model = ImageModel("swin_small_patch4_window7_224", edge, False).eval()
        before = products.get_total_flops()  # of the trial without numbers
        features = model.backbone(torch.zeros(1, 3, edge, edge))
    assert features.shape == (1, edge // 32, edge // 32, 768)
    assert model.backbone.layers[0].blocks[0].window_size == (window, window)  # type: ignore[index, union-attr]
    assert round((products.get_total_flops() - before) / 2e9, 2) == gmacs
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(48.9e6, rel=2e-3)


@pytest.mark.parametrize(
    ("edge", "patch_size"), [(224, 16), (384, 16), (240, 16), (64, 16), (225, 25), (250, 25), (126, 21), (227, 1)]
)
def test_the_patches_that_an_image_comes_in_divide_it(edge: int, patch_size: int) -> None:
    assert build("resnet18", edge).patch_size == patch_size


def test_layers_are_those_of_timms_layer_decay() -> None:
    model = build("swin_tiny_patch4_window7_224")
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert layers["image_backbone.patch_embed.proj.weight"] == 0
    blocks = [layers[f"image_backbone.layers.{stage}.blocks.0.norm1.weight"] for stage in range(4)]
    assert blocks == sorted(set(blocks))
    assert layers["image_backbone.norm.weight"] < layers["head.weight"] == layers["head.bias"] == model.num_layers - 1


def test_its_positions_are_its_own() -> None:
    """So nothing is prepared for it, and nothing is looked up."""
    model = build("resnet18")
    assert (model.learnt_grid, model.trained_grid, model.scale_embed) == (None, None, None)
    assert model.fixed_axis(5).shape == (2, 5, 0)
    assert model.pos_embed_config("bicubic", True).mode == "none"


def test_activations_are_checkpointed_where_timm_can() -> None:
    swin = build("swin_tiny_patch4_window7_224")
    swin.set_grad_checkpointing(True)
    batch = collate(cut(64))
    plain = build("swin_tiny_patch4_window7_224")(*batch)
    torch.testing.assert_close(swin(*batch), plain)
    with torch.device("meta"):
        other = ImageModel("inception_v3", 96, False)
    other.set_grad_checkpointing(False)
    with pytest.raises(ValueError, match="grad_checkpointing: a InceptionV3 of timm has none: choose false"):
        other.set_grad_checkpointing(True)


def test_contributions_to_its_score_are_complete() -> None:
    model = build("test_convnext", head="first_mean")
    torch.nn.init.normal_(model.head.weight)
    tokens = cut(64)
    found = attribute_tokens(model, tokens, torch.zeros(1, 16, 0))
    assert found.is_complete
    assert np.abs(found.contributions).min() > 0


def test_it_is_not_exported() -> None:
    with pytest.raises(ValueError, match="this model reads whole images by a ResNet: only a CharmViT's encoder"):
        export_program(build("resnet18"))


def config(backbone: str, head: str = "mean", edge: int | None = 64, pos_embed: Any = "frozen") -> ViTConfig:
    return ViTConfig(backbone, 1, 1, head, False, pos_embed, edge)  # type: ignore[arg-type]


def test_a_plain_vit_is_never_taken_for_an_image_model() -> None:
    """Not even where only an image model has what is asked for."""
    assert type(build_model(config("charm_demo"))).__name__ == "CharmViT"
    assert {type(build_model(config("test_resnet", head))).__name__ for head in ImageModel.heads} == {"ImageModel"}
    with pytest.raises(ValueError, match="head='first_mean': expected one of cls"):
        build_model(config("charm_demo", "first_mean"))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        pytest.param(
            config("test_maxvit", edge=None),
            r"(?s)paper, section 20\).*; or backbone='test_maxvit' as an image model needs an input that shows whole",
            id="tokens that are no image",
        ),
        pytest.param(config("test_maxvit", edge=1), "takes no images of 1 x 1 pixels .*: choose another", id="a pixel"),
        pytest.param(config("crossvit_9_240", edge=240), "Only token or avg pooling", id="features of no places"),
        pytest.param(config("resnet18", head="cls"), "head='cls' of .*: choose mean or first_mean", id="no CLS token"),
        pytest.param(config("resnet18", head="map"), "head='map' of .*: choose mean or first_mean", id="no pooling"),
        pytest.param(config("resnet18", pos_embed="trainable"), "pos_embed: .* leave it frozen", id="positions"),
        pytest.param(config("resnet81"), "'resnet81' is not a model of timm .*resnet18", id="typo"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reasons(chosen: ViTConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build_model(chosen)
    assert "\n" not in str(error.value)


def test_a_size_that_is_refused_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    create_model = timm.create_model

    def create(name: str, pretrained: bool = False, **settings: Any) -> Any:
        asked.append(pretrained)
        return create_model(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", create)
    for edge, fails in ((1, True), (64, False)):
        asked.clear()
        try:
            build_model(config("test_maxvit", edge=edge), pretrained=True)
        except ValueError:
            assert fails
        assert any(asked) != fails


def test_a_copy_is_the_same_model() -> None:
    """As a moving average of the parameters makes one."""
    model = build("resnet18")
    batch = collate(cut(64))
    torch.testing.assert_close(copy.deepcopy(model)(*batch), model(*batch), atol=0, rtol=0)
