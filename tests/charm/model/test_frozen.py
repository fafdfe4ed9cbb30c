"""Features of frozen layers and heads solved on them: the published model scores what the features say."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from charm.model.config import ViTConfig, ViTShape
from charm.model.frozen import build_solved, choose_layers, hash_weights, layer_features, list_heads, list_parts
from charm.model.metrics import srcc
from charm.model.pooling import pool_tokens
from charm.model.registry import build_model
from charm.model.solving import (
    PENALTIES,
    Features,
    Labels,
    choose_head,
    cross_predict,
    solve_head,
    solve_ridge,
    split_folds,
    try_heads,
)
from charm.model.vit import CharmViT
from charm.runtime.errors import UserError
from charm.tokenization.tokenizer import CharmTokenizer
from tests.conftest import draw_image

# (backbone, its shape, scales, parts): CLS, none, registers, rotary positions, one scale.
KINDS = {
    "built in": ("charm_demo", None, 2, ["cls", "native", "coarse"]),
    "registers": ("vit_small_patch14_reg4_dinov2", ViTShape(48, 3, 3, 56), 2, ["cls", "native", "coarse"]),
    "rotary": ("vit_small_patch16_dinov3", ViTShape(48, 3, 3, 64), 3, ["cls", "native", "coarse"]),
    "no CLS": ("vit_base_patch16_siglip_224", ViTShape(48, 3, 3, 64), 2, ["native", "coarse"]),
    "NaFlex": ("naflexvit_base_patch16_siglip", ViTShape(48, 3, 3, 64), 2, ["native", "coarse"]),
    "one scale": ("vit_tiny_patch16_224", ViTShape(48, 3, 3, 64), 1, ["cls", "mean"]),
}


def build(kind: str) -> tuple[CharmViT, ViTConfig, tuple[torch.Tensor, ...]]:
    """A model with random weights, its config, and the arguments of three images: two scales, padded, and tiny."""
    name, shape, scales, _ = KINDS[kind]
    config = ViTConfig(name, scales, 1, "mean", False, "frozen", activation="sigmoid", shape=shape)
    torch.manual_seed(0)
    model = build_model(config)
    assert isinstance(model, CharmViT)
    for parameter in model.eval().requires_grad_(False).parameters():
        parameter.normal_(0, 0.2)  # so that every one matters
    tokenizer = CharmTokenizer(model.patch_size, max_seq_len=40, num_scales=max(2, scales), budget="fill")
    batch = tokenizer([draw_image(*size) for size in ((200, 150), (60, 90), (20, 20))])
    arrays = (batch.patches, batch.patch_coord, batch.scale_id, batch.patch_valid)
    width = model.fixed_axis(1).shape[-1] if model.rotary else model.vit.embed_dim
    positions = torch.randn(*batch.scale_id.shape, width)
    return model, config, (*map(torch.from_numpy, arrays), positions)


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_model_scores_what_the_features_say(kind: str) -> None:
    model, config, batch = build(kind)
    depth, parts = model.num_layers - 2, list_parts(model)
    assert parts == KINDS[kind][3]
    features = layer_features(model, [1, depth], *batch)
    assert features.shape == (3, 2, len(parts), model.vit.embed_dim)
    generator = np.random.default_rng(1)
    for place, layer in enumerate((1, depth)):
        for head in list_heads(parts):
            read = features[:, place, [parts.index(part) for part in head.split("_")]].flatten(1).numpy()
            weight, bias = generator.normal(0, 0.1, read.shape[1]), 0.3
            published, cut = build_solved(model, config, layer, head, (weight, bias))
            assert (cut.head, cut.num_outputs, published.num_layers - 2) == (head, 1, layer)
            again = build_model(ViTConfig(**vars(cut)))
            again.load_state_dict(published.state_dict())
            with torch.inference_mode():
                scores = again.eval()(*batch)[:, 0].numpy()
            np.testing.assert_allclose(scores, read @ weight + bias, rtol=0, atol=1e-5)
            assert np.ptp(scores) > 1e-3


def test_means_count_the_tokens_of_their_scale_and_no_padding() -> None:
    x = torch.tensor([[[9.0], [1], [2], [4], [8]], [[7], [5], [6], [0], [0]]])
    valid = torch.tensor([[True, True, True, True], [True, True, False, False]])
    is_native = torch.tensor([[True, False, False, True], [True, True, True, True]])
    found = pool_tokens(["cls", "mean", "native", "coarse"], x, 1, valid, is_native)
    assert torch.cat(found, 1).tolist() == [[9, 3.75, 4.5, 3], [7, 5.5, 5.5, 0]]


def test_layers_and_weights() -> None:
    assert [choose_layers(depth) for depth in (1, 2, 12, 24)] == [[1], [1, 2], [4, 6, 8, 12], [8, 12, 16, 24]]
    model = build("built in")[0]
    before = hash_weights(model)
    model.head.bias.add_(1)
    assert hash_weights(model) == before
    model.vit.blocks[0].mlp.fc1.bias.add_(1e-6)
    assert hash_weights(model) != before


@pytest.mark.parametrize("shape", [(60, 20), (12, 30)], ids=["more images", "more features"])
def test_ridge_is_that_of_scikit_learn_for_all_penalties_at_once(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    features, targets = generator.normal(3, 2, shape), generator.uniform(size=shape[0])
    features[:, 4] = 0.1  # constant: neither an infinite weight nor a division by zero
    weights, biases = solve_ridge(features, targets, PENALTIES)
    scaler = StandardScaler().fit(features)
    for penalty, weight, bias in zip(PENALTIES, weights, biases, strict=True):
        expected = Ridge(penalty).fit(scaler.transform(features), targets).predict(scaler.transform(features))
        np.testing.assert_allclose(features @ weight + bias, expected, rtol=0, atol=1e-9)
    assert (weights[:, 4] == 0).all()


def make_features(count: int, noise: float = 0.05) -> tuple[Features, Labels]:
    """Layer 2's native tokens know the target; all else is noise. Groups of three images."""
    generator = np.random.default_rng(5)
    targets = generator.uniform(size=count)
    values = generator.normal(size=(count, 2, 2, 6))
    values[:, 1, 1, 0] = targets + noise * generator.normal(size=count)
    return Features([1, 2], ["cls", "native"], values), Labels(targets, np.arange(count) // 3, 0)


def test_layer_and_pooling_that_know_most_are_chosen_and_groups_stay_together() -> None:
    features, labels = make_features(90)
    folds = split_folds(labels)
    assert sorted(chain.from_iterable(held_out for _, held_out in folds)) == list(range(90))
    assert all(not set(labels.groups[learnt]) & set(labels.groups[held_out]) for learnt, held_out in folds)
    tried = try_heads(features, labels)
    assert [(one.layer, one.head) for one in tried] == [
        (layer, head) for layer in (1, 2) for head in ("cls", "native", "cls_native")
    ]
    chosen = choose_head(tried)
    assert (chosen.layer, chosen.head, chosen.srcc > 0.9) == (2, "native", True)
    weight, bias = solve_head(features, labels, chosen)
    assert srcc(features.of(2, "native") @ weight + bias, labels.targets) > 0.9
    # Each image by a head that has not seen it: a target that is noise is not predicted.
    assert srcc(cross_predict(features, labels), labels.targets) > 0.9
    alone = replace(labels, targets=np.random.default_rng(7).uniform(size=90))
    assert abs(srcc(cross_predict(features, alone), alone.targets)) < 0.3
    with pytest.raises(UserError, match=r"expected two images, or groups of them, got 1"):
        try_heads(features, replace(labels, groups=np.zeros(90)))
