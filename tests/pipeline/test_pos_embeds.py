"""Position embeddings on disk: the learnt grid and weights per axis, two rows per token."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from charm.augment import Symmetry
from charm.pos_embed import resample_pos_embed
from charm.tokenizer import CharmTokenizer
from pipeline.errors import UserError
from pipeline.pos_embeds import PosEmbeds, list_axes, write_axes
from tests.conftest import SIZES, draw_picture

WIDTH, SIDE = 6, 4
LEARNT = torch.randn(1, SIDE**2, WIDTH, generator=torch.Generator().manual_seed(0))
TOKENIZERS = {
    "two scales": CharmTokenizer(patch_size=14, max_seq_len=24, budget="share", redraw="once"),
    "three scales": CharmTokenizer(patch_size=7, max_seq_len=60, num_scales=3, budget="fill"),
}


def write(folder: Path, axes: list[int], mode: str = "bilinear", antialias: bool = False) -> PosEmbeds:
    write_axes(folder, LEARNT[0].reshape(SIDE, SIDE, WIDTH), axes, mode, antialias)
    return PosEmbeds(folder)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_token_gets_the_embedding_of_its_place(
    name: str, turns: int, mode: str, antialias: bool, tmp_path: Path
) -> None:
    """For pictures of one scale and of several, upright and turned."""
    tokenizer = TOKENIZERS[name]
    pos_embeds = write(tmp_path, list_axes(tokenizer, SIZES), mode, antialias)
    for height, width in SIZES:
        tokens = tokenizer(draw_picture(height, width), symmetry=Symmetry(flip=True, turns=turns))
        rows = pos_embeds.rows(tokens)
        assert rows.dtype == np.int32
        assert rows.shape == (len(tokens.patch_valid), 2)
        assert not rows[~tokens.patch_valid].any()
        found = pos_embeds.gather(torch.from_numpy(rows))
        for token in np.flatnonzero(tokens.patch_valid):
            y, x = tokens.patch_coord[token]
            table = resample_pos_embed(LEARNT, tokens.grids[tokens.scale_id[token]], mode, antialias)
            torch.testing.assert_close(found[token], table[y, x], atol=1e-5, rtol=0)


def test_axes_of_every_scale() -> None:
    tokenizer = TOKENIZERS["two scales"]
    assert list_axes(tokenizer, [(60, 80)]) == [4, 6]  # whole, at native resolution
    assert list_axes(tokenizer, [(100, 150), (100, 150)]) == [4, 5, 8, 10]
    assert list_axes(tokenizer, [(112, 112)]) == [4, 8]


def test_equal_axes_are_equal_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder, [2, 3])
    for name in ("axes.safetensors", "axes.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_axis_that_was_not_prepared(tmp_path: Path) -> None:
    pos_embeds = write(tmp_path, [6])
    tokens = TOKENIZERS["two scales"](draw_picture(112, 112))
    with pytest.raises(UserError, match=rf"{tmp_path} has no axis of 4 tokens for the grid \(4, 4\): run dvc repro"):
        pos_embeds.rows(tokens)


@pytest.mark.parametrize("name", ["axes.safetensors", "axes.json"])
def test_missing_file(name: str, tmp_path: Path) -> None:
    write(tmp_path, [2, 3])
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        PosEmbeds(tmp_path)


def test_flipped_bits_and_cuts_are_found(tmp_path: Path) -> None:
    write(tmp_path, [2, 3])
    path = tmp_path / "axes.safetensors"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        for data in (bytes(damaged), whole[:place]):
            path.write_bytes(data)
            with pytest.raises(UserError, match=f"{tmp_path}: position embeddings are missing or damaged"):
                PosEmbeds(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "3", json.dumps({"sha256": None})])
def test_damaged_facts(content: str, tmp_path: Path) -> None:
    write(tmp_path, [2, 3])
    (tmp_path / "axes.json").write_text(content)
    with pytest.raises(UserError, match="missing or damaged"):
        PosEmbeds(tmp_path)
