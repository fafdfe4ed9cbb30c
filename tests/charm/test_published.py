"""Published checkpoints become models that score as the published forward pass does."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from charm.inputs.published import PADDING, PublishedInput, halve, measure_frequency
from charm.inputs.settings import PublishedSettings
from charm.model.pos_embed import gather_pos_embed, resample_pos_embed
from charm.published import CHECKPOINTS, import_checkpoint
from charm.runtime.errors import UserError
from charm.scorer import CharmScorer
from charm.tokenization.tokens import Tokens
from tests.conftest import draw_image
from tests.pickles import Container, build_published, run_published, save_published

IMAGES = {"native": (200, 260), "coarse": (560, 500)}


def as_published(tokens: Tokens, learnt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patches, positions and ids as the published forward pass takes them."""
    tables = [resample_pos_embed(learnt, grid, "bicubic_offset") for grid in tokens.grids[1:]]
    ids = torch.from_numpy(tokens.scale_id.astype(int))
    found = gather_pos_embed(tables, torch.from_numpy(tokens.pos_coord), ids.clamp(min=1) - 1)
    positions = torch.cat([learnt[0, :1], torch.where((ids == PADDING)[:, None], 0.0, found)])
    patches = torch.from_numpy(tokens.patches / 255).permute(0, 3, 1, 2)
    return patches, positions, torch.where(ids == PADDING, 9, ids - 1)


@pytest.mark.parametrize("padded", [False, True], ids=["as scored", "as trained"])
@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("name", ["koniq10k", "ava"])
def test_scores_are_those_of_the_published_forward_pass(name: str, kind: str, padded: bool, tmp_path: Path) -> None:
    bins, (low, high) = CHECKPOINTS[name].bins, CHECKPOINTS[name].score_range
    model = save_published(tmp_path, bins)
    config = import_checkpoint(str(tmp_path / "koniq10k_charm.pth"), name).config
    settings = {"tokens": 700, "padded": padded}
    imported = import_checkpoint(str(tmp_path / "koniq10k_charm.pth"), name)
    scorer = CharmScorer(imported.model, replace(config, tokenizer=replace(config.tokenizer, settings=settings)))
    image = draw_image(*IMAGES[kind])
    (tokens,) = scorer.tokenize(image)
    count = tokens.seq_len
    assert (count == 700) == padded
    trimmed = replace(PublishedInput(14, count, PublishedSettings(**settings)))(image)
    output = run_published(model, *as_published(trimmed, build_published(bins)[1]))[0]
    score = scorer(image)
    if bins > 1:
        np.testing.assert_allclose(score.distribution, output.softmax(0), atol=1e-6)
    else:
        assert score.raw == pytest.approx(high * float(torch.sigmoid(output)), abs=1e-5)  # as the published code has it
    assert low <= score.score <= high


def test_a_folder_of_it_scores_alike(tmp_path: Path) -> None:
    save_published(tmp_path)
    scorer = import_checkpoint(str(tmp_path / "koniq10k_charm.pth"), "koniq10k")
    scorer.save_pretrained(tmp_path / "model")
    image = draw_image(200, 260)
    assert CharmScorer.from_pretrained(tmp_path / "model", "cpu")(image) == scorer(image)
    assert scorer.score_range == (1, 5)  # of people's means
    padded = import_checkpoint(str(tmp_path / "koniq10k_charm.pth"), "koniq10k", padded=True)
    assert padded.tokenize(image)[0].patch_valid.sum() == padded.tokenizer.max_seq_len == 1024


def test_what_does_not_fit_is_one_line_with_what_was_found(tmp_path: Path) -> None:
    save_published(tmp_path)
    path = str(tmp_path / "koniq10k_charm.pth")
    with pytest.raises(UserError, match=r"of another shape \(head\.bias is \[1\] and not \[10\]"):
        import_checkpoint(path, "ava")
    with pytest.raises(UserError, match=r"say by --dataset which one it is of"):
        import_checkpoint(path)
    with pytest.raises(UserError, match=r"--dataset koniq: .* did you mean 'koniq10k'"):
        import_checkpoint(path, "koniq")
    torch.save({"model_state_dict": Container(other=torch.nn.Linear(2, 3))}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth is not the published model of para: .*depth") as error:
        import_checkpoint(str(tmp_path / "other.pth"), "para")
    assert "\n" not in str(error.value)
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"holds no module with tensors under 'model_state_dict': found \['epoch'\]"):
        import_checkpoint(str(tmp_path / "none.pth"), "para")
    with pytest.raises(UserError, match=r"nowhere\.pth: No such file"):
        import_checkpoint(str(tmp_path / "nowhere.pth"), "para")


def test_coarse_patches_are_those_of_torch() -> None:
    """Cubic, without antialiasing, each for itself."""
    cells = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
    planes = torch.from_numpy(cells).permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.interpolate(planes, size=(14, 14), mode="bicubic").permute(0, 2, 3, 1)
    np.testing.assert_allclose(halve(cells), expected, atol=1e-3)
    assert halve(cells).max() > 255
    spectrum = torch.fft.fft2(planes / 255).abs()
    np.testing.assert_allclose(measure_frequency(cells), (20 * spectrum.log10()).mean((1, 2, 3)), atol=1e-3)


@pytest.mark.parametrize(
    ("image_hw", "frame_hw"),
    [((587, 561), (588, 588)), ((560, 573), (560, 560)), ((768, 1024), (784, 1036)), ((20, 20_000), (28, 20_020))],
    ids=str,
)
def test_the_border_follows_the_product_of_both_axes(image_hw: tuple[int, int], frame_hw: tuple[int, int]) -> None:
    """587 x 561 gains 27 columns to save one, 560 x 573 loses 13; what the published code cannot cut is padded."""
    made = PublishedInput(14, 2000, PublishedSettings(512))
    assert made.frame_hw(image_hw) == frame_hw
    image = np.full((*image_hw, 3), 200, np.uint8)
    frame = made.frame(image)
    assert frame.shape == (*frame_hw, 3)
    assert (frame[image_hw[0] :] == 0).all()
    assert (frame[:, image_hw[1] :] == 0).all()


def test_native_tokens_carry_positions_row_by_row() -> None:
    """Each place of a native token is carried once, and mostly by another."""
    image = cv2.resize(draw_image(300, 300), (700, 600))
    tokens = PublishedInput(14, 2000, PublishedSettings(512, padded=False))(image)
    native = tokens.scale_id == 2
    assert native.sum() == 256
    own, carried = tokens.patch_coord[native], tokens.pos_coord[native]
    assert sorted(map(tuple, own.tolist())) == list(map(tuple, carried.tolist()))
    assert (own != carried).any(axis=1).mean() > 0.5
    np.testing.assert_array_equal(tokens.pos_coord[tokens.scale_id == 1], tokens.patch_coord[tokens.scale_id == 1])
