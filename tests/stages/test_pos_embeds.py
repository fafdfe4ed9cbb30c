import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from charm import CharmTokenizer, CharmViT
from pipeline.manifest.table import Manifest, read_manifest
from pipeline.pos_embeds.axes import PosEmbeds, read_area
from pipeline.settings.inputs import build_tokenizer
from pipeline.settings.params import Params
from pipeline.shards.read import ShardReader
from stages import pos_embeds

Workspace = tuple[Path, Params]


def test_every_image_finds_the_embeddings_of_its_tokens(workspace: Workspace) -> None:
    folder, params = workspace
    prepared = PosEmbeds(folder / "data/pos_embeds", "charm_demo")
    model = CharmViT("charm_demo", num_scales=2)
    tokenizer = build_tokenizer(params, model.patch_size)
    assert isinstance(tokenizer, CharmTokenizer)
    images = ShardReader(folder / "data/shards")
    for key in read_manifest(folder / "data/manifest").keys:
        tokens = tokenizer(images.read_image(key), key=key)
        found = prepared.gather(torch.from_numpy(prepared.rows(tokens)))
        expected = model.pos_embed_tables(tokens.grids)
        for token in range(tokens.seq_len):
            y, x = tokens.patch_coord[token]
            torch.testing.assert_close(found[token], expected[tokens.scale_id[token]][y, x], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("max_seq_len", "is_little"), [(4096, False), (4, True)])
def test_how_much_of_the_images_is_seen_is_told(
    max_seq_len: int,
    is_little: bool,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, params = workspace
    (tmp_path / "data").mkdir()
    (tmp_path / "data/manifest").symlink_to(folder / "data/manifest")
    monkeypatch.chdir(tmp_path)
    pos_embeds.main(replace(params, max_seq_len=max_seq_len))
    area = read_area(tmp_path / "data/pos_embeds")
    assert area is not None
    printed = capsys.readouterr().out
    assert f"pos_embeds: of an image's area, median: {area.median}; lowest: {area.lowest}" in printed
    assert (area.median == (1, 0, 0)) != is_little
    warning = "raise max_seq_len (4) or lower manifest.max_edge (no limit)"
    assert (warning in printed) == ("warning" in printed) == is_little


def test_of_inputs_that_resize_an_image_nothing_is_told(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, params = workspace
    (tmp_path / "data").mkdir()
    (tmp_path / "data/manifest").symlink_to(folder / "data/manifest")
    monkeypatch.chdir(tmp_path)
    pos_embeds.main(replace(params, tokenizer="square", max_seq_len=400))
    assert read_area(tmp_path / "data/pos_embeds") is None
    assert "area" not in capsys.readouterr().out


def test_the_work_grows_as_the_images_and_not_as_their_square(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in calls of functions; AVA has 250,000 images."""
    folder, params = workspace
    one = read_manifest(folder / "data/manifest")
    monkeypatch.chdir(tmp_path)

    def count_calls(times: int) -> int:
        many = Manifest(pa.concat_tables([one.table] * times), one.facts)
        monkeypatch.setattr(pos_embeds, "read_manifest", lambda _: many)
        calls = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        try:
            pos_embeds.main(params)
        finally:
            sys.setprofile(None)
        return calls

    few, more, most = (count_calls(times) for times in (20, 40, 80))
    assert most - more < 3 * (more - few) + 5000
