"""Position embeddings on disk: one table per grid, a row per token."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from charm.augment import Symmetry
from charm.pos_embed import resample_pos_embed
from charm.tokenizer import CharmTokenizer, Tokens
from pipeline.errors import UserError
from pipeline.pos_embeds import PosEmbedTables, list_grids, write_tables
from tests.conftest import SIZES, draw_picture

WIDTH, SIDE, PREFIX = 6, 4, 2
LEARNT = torch.randn(1, PREFIX + SIDE**2, WIDTH, generator=torch.Generator().manual_seed(0))
TOKENIZERS = {
    "two scales": CharmTokenizer(patch_size=14, max_seq_len=24, budget="share", redraw="once"),
    "three scales": CharmTokenizer(patch_size=7, max_seq_len=60, num_scales=3, budget="fill"),
}


def write(folder: Path, grids: list[tuple[int, int]], mode: str = "bilinear") -> PosEmbedTables:
    write_tables(folder, LEARNT, PREFIX, grids, mode, antialias=False)
    return PosEmbedTables(folder)


def rows_one_by_one(tables: PosEmbedTables, tokens: Tokens) -> list[torch.Tensor]:
    """The embedding of each token that is not padding, resampled for itself."""
    found = []
    for (y, x), scale, valid in zip(tokens.patch_coord, tokens.scale_id, tokens.patch_valid, strict=True):
        if valid:
            table = resample_pos_embed(LEARNT, tokens.grids[scale], "bilinear", False, PREFIX)
            found.append(table[y, x])
    return found


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_rows_are_those_of_each_token(name: str, turns: int, tmp_path: Path) -> None:
    """For pictures of one scale and of several, upright and turned."""
    tokenizer = TOKENIZERS[name]
    tables = write(tmp_path, list_grids(tokenizer, SIZES))
    for height, width in SIZES:
        tokens = tokenizer(draw_picture(height, width), symmetry=Symmetry(flip=True, turns=turns))
        rows = tables.rows(tokens)
        assert rows.dtype == np.int32
        assert rows.shape == tokens.patch_valid.shape
        assert not rows[~tokens.patch_valid].any()
        expected = torch.stack(rows_one_by_one(tables, tokens))
        assert torch.equal(tables.flat[rows[tokens.patch_valid].astype(int)], expected)


def test_grids_of_both_orientations() -> None:
    tokenizer = TOKENIZERS["two scales"]
    assert list_grids(tokenizer, [(60, 80)]) == [(4, 6), (6, 4)]  # whole, at native resolution
    assert list_grids(tokenizer, [(100, 150), (100, 150)]) == [(4, 5), (5, 4), (8, 10), (10, 8)]
    assert list_grids(tokenizer, [(112, 112)]) == [(4, 4), (8, 8)]


def test_every_row_is_some_tables(tmp_path: Path) -> None:
    tables = write(tmp_path, [(2, 3), (3, 2), (4, 4)])
    assert tables.flat.shape == (2 * 3 + 3 * 2 + 4 * 4, WIDTH)
    assert tables.flat.dtype == torch.float32


def test_equal_tables_are_equal_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder, [(2, 3), (3, 2)])
    for name in ("tables.safetensors", "tables.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_mode_is_heeded(tmp_path: Path) -> None:
    bilinear, bicubic = (write(tmp_path / mode, [(3, 5)], mode).flat for mode in ("bilinear", "bicubic"))
    assert not torch.equal(bilinear, bicubic)
    assert torch.equal(bicubic, resample_pos_embed(LEARNT, (3, 5), "bicubic", False, PREFIX).reshape(-1, WIDTH))


def test_a_grid_without_a_table(tmp_path: Path) -> None:
    tables = write(tmp_path, [(4, 6)])
    tokens = TOKENIZERS["two scales"](draw_picture(112, 112))
    with pytest.raises(UserError, match=rf"{tmp_path} has no table for a grid of \(4, 4\): run dvc repro"):
        tables.rows(tokens)


@pytest.mark.parametrize("name", ["tables.safetensors", "tables.json"])
def test_missing_file(name: str, tmp_path: Path) -> None:
    write(tmp_path, [(2, 3)])
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        PosEmbedTables(tmp_path)


def test_flipped_bits_and_cuts_are_found(tmp_path: Path) -> None:
    write(tmp_path, [(2, 3), (3, 2)])
    path = tmp_path / "tables.safetensors"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        for data in (bytes(damaged), whole[:place]):
            path.write_bytes(data)
            with pytest.raises(UserError, match=f"{tmp_path}: position embeddings are missing or damaged"):
                PosEmbedTables(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "3", json.dumps({"sha256": None})])
def test_damaged_facts(content: str, tmp_path: Path) -> None:
    write(tmp_path, [(2, 3)])
    (tmp_path / "tables.json").write_text(content)
    with pytest.raises(UserError, match="missing or damaged"):
        PosEmbedTables(tmp_path)
