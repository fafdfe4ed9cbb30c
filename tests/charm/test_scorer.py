"""CharmScorer: a score is the image's own, whoever asks for it, how, and beside what."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from charm import CharmScorer
from charm.hub import encode_model
from charm.model.vit import CharmViT
from charm.tokenization.geometry import limit_edge
from tests.conftest import draw_image
from tests.untrained import build_scorer, describe

SIZES = ((40, 60), (150, 100), (333, 222), (200, 400), (16, 500), (9, 9))


@pytest.fixture
def scorer() -> CharmScorer:
    return build_scorer()


@pytest.fixture
def images() -> list[np.ndarray]:
    return [draw_image(*size, seed) for seed, size in enumerate(SIZES)]


def test_a_score_does_not_depend_on_batch_mates_order_or_threads(
    scorer: CharmScorer, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [scorer(image).score for image in images]
    assert np.ptp(alone) > 0.1
    together = [found.score for found in scorer(images)]
    backwards = [found.score for found in scorer(images[::-1])][::-1]
    monkeypatch.setattr("charm.scorer._BATCH_TOKENS", 100)
    in_turns = [found.score for found in scorer(images)]
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    threaded = [found.score for found in scorer(images)]
    torch.set_num_threads(threads)
    for scores in (together, backwards, in_turns, threaded):
        np.testing.assert_allclose(scores, alone, atol=1e-5)


def test_it_is_the_models_own_output_on_the_scale_of_the_labels(scorer: CharmScorer) -> None:
    image = draw_image(150, 100)
    (tokens,) = scorer.tokenize(image)
    arrays = [torch.from_numpy(array)[None] for array in (tokens.patches, tokens.patch_coord, tokens.scale_id)]
    valid = torch.from_numpy(tokens.patch_valid)[None]
    output = scorer.model(*arrays, valid, [scorer.model.pos_embed_tables(tokens.grids)])
    assert scorer(image).score == pytest.approx(1 + 4 * float(output), abs=1e-5)
    assert scorer(image).distribution is None


def test_any_kind_of_image_will_do(scorer: CharmScorer) -> None:
    array = draw_image(90, 120)
    kinds = [array, Image.fromarray(array), torch.from_numpy(array).permute(2, 0, 1)]
    scores = [found.score for found in scorer(kinds)]
    np.testing.assert_allclose(scores, scores[0], atol=1e-6)


def test_draws_follow_from_the_pixels(scorer: CharmScorer) -> None:
    image = draw_image(333, 222)
    (first,), (again,) = scorer.tokenize(image), scorer.tokenize(image.copy())
    np.testing.assert_array_equal(first.patch_coord, again.patch_coord)
    other = image.copy()
    other[0, 0] ^= 1
    assert not np.array_equal(first.patch_coord, scorer.tokenize(other)[0].patch_coord)


def test_draws_are_averaged_with_their_spread(scorer: CharmScorer) -> None:
    image = draw_image(333, 222)
    each = [scorer.score_tokens([[tokens]])[0].score for tokens in scorer.tokenize(image, draws=5)]
    found = scorer(image, draws=5)
    assert np.std(each) > 1e-4
    assert (found.score, found.spread) == pytest.approx((np.mean(each), np.std(each)), abs=1e-5)
    assert build_scorer(draws=5)(image) == found
    assert scorer(image).spread == 0


def test_a_distribution_has_its_mean_as_score() -> None:
    scorer = build_scorer(5)
    found = scorer(draw_image(150, 100))
    assert found.distribution is not None
    assert found.distribution.shape == (5,)
    assert found.distribution.sum() == pytest.approx(1)
    assert np.ptp(found.distribution) > 0.01
    assert found.score == pytest.approx(found.distribution @ [1, 2, 3, 4, 5])


def test_large_images_are_first_downscaled_as_in_training() -> None:
    scorer = build_scorer(max_edge=100)
    (tokens,) = scorer.tokenize(draw_image(333, 222))
    expected = scorer.tokenizer.grids(limit_edge((333, 222), 100))
    assert tokens.grids == expected != scorer.tokenizer.grids((333, 222))


def test_a_saliency_model_needs_a_mask_and_follows_it() -> None:
    scorer = build_scorer(selection="saliency", max_seq_len=40)
    image = draw_image(112, 112)  # 4 x 4 coarse patches, 8 of which stay native
    left = np.zeros((112, 112), bool)
    left[:, :56] = True
    for mask, expected in ((left, True), (~left, False)):
        (tokens,) = scorer.tokenize(image, mask)
        x = tokens.patch_coord[tokens.patch_valid & (tokens.scale_id == 1), 1]
        assert len(x) == 32
        assert set(x < 4) == {expected}
    assert scorer([image, image], saliency_mask=[left, ~left])[0] == scorer(image, saliency_mask=left)
    with pytest.raises(ValueError, match="this model needs saliency_mask"):
        scorer(image)
    with pytest.raises(ValueError, match=r"saliency_mask is \(56, 112\): expected \(112, 112\)"):
        scorer(image, saliency_mask=left[:56])
    with pytest.raises(ValueError, match="2 images and 1 masks"):
        scorer([image, image], saliency_mask=[left])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda scorer: scorer(b"score,path"), "not a JPEG", id="another file"),
        pytest.param(lambda scorer: scorer(np.zeros((4, 4, 3))), "float64", id="floats"),
        pytest.param(lambda scorer: scorer(draw_image(9, 9), draws=0), "draws=0: expected at least 1", id="no draw"),
        pytest.param(
            lambda scorer: scorer(draw_image(9, 9), saliency_mask=np.ones((9, 9), bool)), "takes no", id="a mask"
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(
    call: Callable[[CharmScorer], Any], message: str, scorer: CharmScorer
) -> None:
    with pytest.raises(ValueError, match=message):
        call(scorer)


def test_no_images_have_no_scores(scorer: CharmScorer) -> None:
    assert scorer([]) == []


def test_half_precision_is_near(scorer: CharmScorer, images: list[np.ndarray]) -> None:
    half = build_scorer(precision="bfloat16")
    scores = [[found.score for found in one(images)] for one in (scorer, half)]
    np.testing.assert_allclose(*scores, atol=0.1)
    assert scores[0] != scores[1]
    with pytest.raises(ValueError, match="precision='int8': expected one of float32"):
        build_scorer(precision="int8")


@pytest.mark.parametrize("name", ["standard", "padding", "ms", "hr_ms"])
def test_the_papers_other_inputs_score_too(name: str, images: list[np.ndarray]) -> None:
    scorer = build_scorer(tokenizer=name)
    alone = [scorer(image).score for image in images]
    np.testing.assert_allclose([found.score for found in scorer(images)], alone, atol=1e-5)


def test_a_folder_gives_the_same_scores(scorer: CharmScorer, images: list[np.ndarray], tmp_path: Path) -> None:
    for name, data in encode_model(scorer.model.state_dict(), scorer.config).items():
        (tmp_path / name).write_bytes(data)
    assert CharmScorer.from_pretrained(str(tmp_path))(images) == scorer(images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"model": {"backbone": "charm_demo"}}, "are not of one model", id="another model"),
        pytest.param({"tokenizer": {"name": "nonsense"}}, "config is not of a Charm model: KeyError", id="tokenizer"),
        pytest.param({"labels": {}}, "config is not of a Charm model: KeyError", id="no labels"),
    ],
)
def test_a_folder_of_something_else_is_refused(
    change: dict[str, Any], message: str, scorer: CharmScorer, tmp_path: Path
) -> None:
    for name, data in encode_model(scorer.model.state_dict(), scorer.config | change).items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        CharmScorer.from_pretrained(str(tmp_path))


def test_a_backbone_with_rotary_positions(images: list[np.ndarray]) -> None:
    backbone = "vit_small_patch16_dinov3"
    model = CharmViT(backbone, pretrained=False, depth=1, embed_dim=48, num_heads=3)
    scorer = CharmScorer(model, describe(patch_size=model.patch_size))
    alone = [scorer(image).score for image in images]
    np.testing.assert_allclose([found.score for found in scorer(images)], alone, atol=1e-5)
