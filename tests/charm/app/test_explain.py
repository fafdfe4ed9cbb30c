"""What a card shows is what happened to the image: its tokens, and what each of them did to the score."""

import base64
import json
import re
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from charm.app.explain import (
    LOWERED,
    RAISED,
    attribute_score,
    describe_backbone,
    describe_card,
    encode_overlay,
    show_contributions,
    show_tokens,
    trace_border,
)
from charm.inputs.registry import INPUTS
from charm.scores import Score
from tests.charm.app.conftest import build_scorer
from tests.conftest import draw_image


def decode(uri: str) -> np.ndarray:
    """uint8 (h, w, 3 or 4), in OpenCV's order of channels."""
    return cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",", 1)[1]), np.uint8), cv2.IMREAD_UNCHANGED)


def paint_path(path: str, frame_hw: tuple[int, int], cell_size: int) -> np.ndarray:
    """Cells inside an SVG path of straight lines, bool (h, w): whoever crosses its upright lines is in, then out."""
    crossings = np.zeros((frame_hw[0] // cell_size, frame_hw[1] // cell_size + 1), int)
    for x, y, line, length in re.findall(r"M(\d+) (\d+)([hv])(\d+)", path):
        if line == "v":
            crossings[int(y) // cell_size : (int(y) + int(length)) // cell_size, int(x) // cell_size] += 1
    return np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1


@pytest.mark.parametrize(
    ("marked", "path"),
    [
        pytest.param([[0]], "", id="none"),
        pytest.param([[1]], "M0 0h5M0 5h5M0 0v5M5 0v5", id="all"),
        pytest.param([[0, 1, 1]], "M5 0h10M5 5h10M5 0v5M15 0v5", id="side by side: no line between them"),
        pytest.param(
            [[1, 0], [0, 1]], "M0 0h5M0 5h10M5 10h5M0 0v5M5 0v10M10 5v5", id="corner to corner: lines go through"
        ),
    ],
)
def test_border(marked: list[list[int]], path: str) -> None:
    assert trace_border(np.array(marked, bool), 5) == path


def test_border_goes_around_exactly_the_marked_cells() -> None:
    marked = np.random.default_rng(0).random((9, 13)) < 0.5
    np.testing.assert_array_equal(paint_path(trace_border(marked, 14), (9 * 14, 13 * 14), 14), marked)
    turned = trace_border(marked.T, 14)
    np.testing.assert_array_equal(paint_path(turned, (13 * 14, 9 * 14), 14), marked.T)


@pytest.mark.parametrize("tokenizer", list(INPUTS))
@pytest.mark.parametrize("image_hw", [(200, 260), (60, 50)], ids=["large", "small"])
def test_what_is_shown_is_what_was_tokenized(tokenizer: str, image_hw: tuple[int, int]) -> None:
    scorer, image = build_scorer(tokenizer=tokenizer), draw_image(*image_hw)
    tokens = scorer.tokenize(image, draws=1)[0]
    shown = show_tokens(scorer, image, tokens)
    size = tokens.patches.shape[1]
    native = len(tokens.grids) - 1

    assert shown.image_hw == image_hw
    assert shown.frame_hw == (tokens.grids[-1][0] * size, tokens.grids[-1][1] * size)
    assert sum(scale["count"] for scale in shown.tokens) == tokens.seq_len
    outlined = paint_path(shown.native, shown.frame_hw, size)
    y, x = tokens.patch_coord[tokens.patch_valid & (tokens.scale_id == native)].T
    assert outlined.sum() == len(y) == shown.tokens[0]["count"]
    assert outlined[y, x].all()
    np.testing.assert_array_equal(decode(shown.shade)[..., 3] == 0, outlined)
    # JPEG and shrinking change shades a little; another place, size or flip would change them by far more.
    seen, image = decode(shown.seen)[..., ::-1], decode(shown.image)[..., ::-1]
    assert np.abs(seen.astype(int) - tokens.to_image()).mean() < 8
    pixels = np.repeat(np.repeat(outlined, size, axis=0), size, axis=1)
    if pixels.any():  # the published code gives whole images the scale of coarse tokens
        assert np.abs(image[pixels].astype(int) - tokens.to_image()[pixels]).mean() < 8


def test_large_frames_are_shrunk_and_paths_are_not() -> None:
    scorer, image = build_scorer(max_seq_len=3000), draw_image(900, 1500)
    scorer.max_edge = None
    shown = show_tokens(scorer, image, scorer.tokenize(image, draws=1)[0])
    assert shown.frame_hw == (896, 1512)
    assert decode(shown.image).shape == decode(shown.seen).shape == (427, 720, 3)
    assert max(int(number) for number in re.findall(r"\d+", shown.native)) > 720


@pytest.mark.parametrize(
    ("selection", "name"),
    [("gradient", "gradient"), ("frequency", "frequency"), ("entropy", "entropy"), ("random", None)],
)
def test_importance_is_shown_where_it_decided(selection: str, name: str | None) -> None:
    scorer, image = build_scorer(selection=selection), draw_image(200, 260)
    importance = show_tokens(scorer, image, scorer.tokenize(image, draws=1)[0]).importance
    assert (importance and importance.name) == name
    if importance:
        assert decode(importance.image).shape == (7, 9, 3)


def test_a_image_that_is_small_enough_had_nothing_to_select() -> None:
    scorer, image = build_scorer(), draw_image(60, 50)
    assert show_tokens(scorer, image, scorer.tokenize(image, draws=1)[0]).importance is None


def test_saliency_is_shown_as_the_mask() -> None:
    scorer, image = build_scorer(selection="saliency"), draw_image(196, 252)
    mask = np.zeros((196, 252), bool)
    mask[:, :126] = True
    importance = show_tokens(scorer, image, scorer.tokenize(image, mask, draws=1)[0], mask).importance
    assert importance is not None
    assert importance.highest == "object, 50% of the image"
    heat = decode(importance.image).astype(int)
    assert (heat[:, :126] == heat[0, 0]).all()
    assert (heat[:, 126:] == heat[0, -1]).all()
    assert (heat[0, 0] != heat[0, -1]).any()


@pytest.mark.parametrize("num_outputs", [1, 5], ids=["score", "distribution"])
def test_contributions_add_up_to_what_detail_did_to_the_score(num_outputs: int) -> None:
    scorer, image = build_scorer(num_outputs=num_outputs), draw_image(200, 260)
    draws = scorer.tokenize(image, draws=1)
    facts = show_contributions(scorer, draws[0], attribute_score(scorer, draws[0]))
    alone = scorer.score_tokens([draws])[0]
    assert facts["score"] == pytest.approx(alone.score, abs=1e-5)
    difference = facts["score"] - facts["baseline_score"]
    assert abs(difference) > 1e-4
    assert facts["total"] == pytest.approx(difference, rel=0.05)
    assert 0 < facts["limit"] < 4
    assert facts["left_out"] == 0


def test_it_is_told_what_the_colours_leave_out() -> None:
    scorer = build_scorer()
    tokens = scorer.tokenize(draw_image(200, 260), draws=1)[0]
    found = attribute_score(scorer, tokens)
    facts = show_contributions(scorer, tokens, replace(found, contributions=found.contributions / 2))
    assert facts["left_out"] == pytest.approx(facts["score"] - facts["baseline_score"] - facts["total"], rel=1e-3)
    assert abs(facts["left_out"]) > 1e-4


def test_overlay_is_as_strong_as_what_it_shows() -> None:
    overlay = decode(encode_overlay(np.array([[-2.0, -1.0, 0.0, 0.5, 1.0]])))
    assert overlay[0, :, 3].tolist() == [215, 215, 0, 108, 215]
    assert tuple(overlay[0, 0, 2::-1]) == tuple(overlay[0, 1, 2::-1]) == LOWERED
    assert tuple(overlay[0, 3, 2::-1]) == tuple(overlay[0, 4, 2::-1]) == RAISED


def test_a_flat_image_has_no_contributions_and_a_card_all_the_same() -> None:
    scorer, image = build_scorer(), np.full((200, 260, 3), 90, np.uint8)
    tokens = scorer.tokenize(image, draws=1)[0]
    facts = show_contributions(scorer, tokens, attribute_score(scorer, tokens))
    assert facts["total"] == pytest.approx(0, abs=1e-5)
    assert np.isfinite(facts["limit"])
    assert facts["limit"] > 0
    card: dict[str, Any] = describe_card(Score(1.0, None, None, 1.0), show_tokens(scorer, image, tokens), facts)
    assert json.loads(json.dumps(card, allow_nan=False)) == json.loads(json.dumps(card))


def test_a_image_of_more_coarse_patches_than_tokens_has_no_native_ones() -> None:
    scorer, image = build_scorer(max_seq_len=20), draw_image(200, 260)
    shown = show_tokens(scorer, image, scorer.tokenize(image, draws=1)[0])
    assert (shown.native, shown.tokens[0]["count"], shown.importance) == ("", 0, None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_small_patch14_dinov2.lvd142m", "DINOv2, a small vision transformer with patches of 14 pixels"),
        ("vit_base_patch14_reg4_dinov2", "DINOv2, a base vision transformer with patches of 14 pixels"),
        ("vit_huge_plus_patch16_dinov3.lvd1689m", "DINOv3, a huge plus vision transformer with patches of 16 pixels"),
        ("vit_base_patch16_siglip_512.v2_webli", "SigLIP, a base vision transformer with patches of 16 pixels"),
        ("vit_base_patch32_clip_224.openai", "CLIP, a base vision transformer with patches of 32 pixels"),
        ("vit_tiny_patch16_224", "a tiny vision transformer with patches of 16 pixels"),
        ("charm_demo", "the small vision transformer that Charm brings"),
        ("deit_small_patch16_224", "deit_small_patch16_224"),
    ],
)
def test_a_backbone_in_words(name: str, words: str) -> None:
    assert describe_backbone(name) == words
