"""Position embeddings on disk: what every grid needs of a backbone, and two row numbers per token."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from charm.model.pos_embed import resample_pos_embed
from charm.runtime.errors import UserError
from charm.tokenization.augment import Symmetry
from charm.tokenization.tokenizer import CharmTokenizer
from pipeline.pos_embeds.axes import PosEmbeds, list_axes, write_axes
from tests.conftest import SIZES, draw_image

WIDTH, SIDE = 6, 4
LEARNT = torch.randn(SIDE, SIDE, WIDTH, generator=torch.Generator().manual_seed(0))
TOKENIZERS = {
    "two scales": CharmTokenizer(patch_size=14, max_seq_len=24, budget="share", redraw="once"),
    "three scales": CharmTokenizer(patch_size=7, max_seq_len=60, num_scales=3, budget="fill"),
}


def write(folder: Path, axes: list[int], mode: str = "bilinear", antialias: bool = False) -> PosEmbeds:
    write_axes(folder, "charm_demo", LEARNT, axes, mode, antialias)
    return PosEmbeds(folder, "charm_demo")


def resample(grid_hw: tuple[int, int], mode: str, antialias: bool) -> torch.Tensor:
    return resample_pos_embed(LEARNT.reshape(1, -1, WIDTH), grid_hw, mode, antialias, 0)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_token_gets_what_its_grid_has_at_its_place(name: str, turns: int, tmp_path: Path) -> None:
    """For images of one scale and of several, upright and turned, token by token."""
    tokenizer = TOKENIZERS[name]
    pos_embeds = write(tmp_path, list_axes(tokenizer, SIZES))
    for height, width in SIZES:
        tokens = tokenizer(draw_image(height, width), symmetry=Symmetry(flip=True, turns=turns))
        rows = pos_embeds.rows(tokens)
        assert (rows.dtype, rows.shape) == (np.int32, (tokenizer.max_seq_len, 2))
        assert not rows[~tokens.patch_valid].any()
        gathered = pos_embeds.gather(torch.from_numpy(rows))
        tables = [resample(grid, "bilinear", False) if grid != (0, 0) else None for grid in tokens.grids]
        for index in np.flatnonzero(tokens.patch_valid):
            table = tables[tokens.scale_id[index]]
            y, x = tokens.patch_coord[index]
            assert table is not None
            torch.testing.assert_close(gathered[index], table[y, x], atol=1e-5, rtol=0)


@pytest.mark.parametrize("antialias", [False, True], ids=["sampled", "averaged"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("grid_hw", [(1, 1), (2, 3), (3, 2), (4, 4), (1, 9), (9, 5)], ids=str)
def test_whole_grids(grid_hw: tuple[int, int], mode: str, antialias: bool, tmp_path: Path) -> None:
    pos_embeds = write(tmp_path, [1, 2, 3, 4, 5, 9], mode, antialias)
    first = {side: pos_embeds._first[side] for side in grid_hw}
    y, x = np.mgrid[: grid_hw[0], : grid_hw[1]]
    rows = torch.from_numpy(np.stack([y + first[grid_hw[0]], x + first[grid_hw[1]]], axis=-1))
    torch.testing.assert_close(pos_embeds.gather(rows), resample(grid_hw, mode, antialias), atol=1e-5, rtol=0)


def test_axes_are_the_sides_of_every_grid() -> None:
    tokenizer = TOKENIZERS["two scales"]
    assert list_axes(tokenizer, [(60, 80)]) == [4, 6]  # whole, at native resolution
    assert list_axes(tokenizer, [(100, 150), (100, 150)]) == [4, 5, 8, 10]
    assert list_axes(tokenizer, [(60, 80), (112, 112)]) == [4, 6, 8]


def test_equal_axes_are_equal_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder, [2, 3])
    for name in ("axes.safetensors", "axes.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_grid_with_an_unknown_axis(tmp_path: Path) -> None:
    pos_embeds = write(tmp_path, [4, 6])
    tokens = TOKENIZERS["two scales"](draw_image(112, 112))
    with pytest.raises(UserError, match=rf"{tmp_path}: no axis of 8 tokens for the grid \(8, 8\); run dvc repro"):
        pos_embeds.rows(tokens)


@pytest.mark.parametrize("name", ["axes.safetensors", "axes.json"])
def test_missing_file(name: str, tmp_path: Path) -> None:
    write(tmp_path, [2, 3])
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        PosEmbeds(tmp_path, "charm_demo")


def test_flipped_bits_and_cuts_are_found(tmp_path: Path) -> None:
    write(tmp_path, [2, 3])
    path = tmp_path / "axes.safetensors"
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        for data in (bytes(damaged), whole[:place]):
            path.write_bytes(data)
            with pytest.raises(UserError, match=rf"{tmp_path}/axes\.(json|safetensors): missing or damaged"):
                PosEmbeds(tmp_path, "charm_demo")


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "3", json.dumps({"sha256": None})])
def test_damaged_facts(content: str, tmp_path: Path) -> None:
    write(tmp_path, [2, 3])
    (tmp_path / "axes.json").write_text(content)
    with pytest.raises(UserError, match="missing or damaged"):
        PosEmbeds(tmp_path, "charm_demo")
