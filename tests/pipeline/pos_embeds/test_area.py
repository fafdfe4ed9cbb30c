"""How much of many images is seen: the one in the middle and the one that is seen least."""

from dataclasses import replace
from pathlib import Path

import pytest

from charm.inputs.registry import INPUTS, build_input
from charm.inputs.settings import SETTINGS
from charm.tokenization.tokenizer import CharmTokenizer
from pipeline.pos_embeds.axes import read_area, summarize_area, write_area

TOKENIZER = CharmTokenizer(patch_size=14, max_seq_len=64)


def test_the_middle_and_the_lowest_of_images_in_any_order(tmp_path: Path) -> None:
    small, medium, large = (112, 112), (224, 224), (1120, 1120)  # 64, 256 and 6400 patches
    for image_hws, middle in (
        ([small] * 3 + [large, medium], small),
        ([large, medium, small], medium),
        ([medium, large, large, small, large], large),
        ([small, large], large),
    ):
        found = summarize_area(TOKENIZER, image_hws)
        assert found is not None
        assert found.median == TOKENIZER.area_seen(middle)
        assert found.lowest == TOKENIZER.area_seen(large)
        write_area(tmp_path, found)
        assert read_area(tmp_path) == found


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_that_resize_show_nothing_natively(name: str, tmp_path: Path) -> None:
    tokenizer = build_input(name, SETTINGS[name](), replace(TOKENIZER, max_seq_len=2000))
    found = summarize_area(tokenizer, [(300, 400)])
    assert (found is None) == (name != "charm")
    write_area(tmp_path, found)
    assert read_area(tmp_path) == found


def test_without_images_there_is_nothing_to_summarize() -> None:
    assert summarize_area(TOKENIZER, []) is None
