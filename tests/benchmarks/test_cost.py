"""The paper's GMACs (Tables 5 and 17)."""

import pytest
import torch
from torch import nn

from tests.benchmarks.cost import SETTINGS, Setting, count_call, count_macs, make_call


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: f"{setting.model}, {setting.input}")
def test_macs_are_those_of_the_paper(setting: Setting) -> None:
    """To its last digit with Charm; the paper counts a plain ViT without its CLS token, ours has one."""
    gmacs = count_macs(setting) / 1e9
    paper = setting.paper[2]
    if setting.num_scales > 1:
        assert round(gmacs, 2) == paper
    else:
        assert 1 < gmacs / paper < 1.006


def test_two_blocks_tell_what_all_need() -> None:
    setting = SETTINGS[4]  # 196 tokens
    assert count_macs(setting) == count_call(*make_call(setting, "cpu"))


def test_products_and_the_other_operations_are_counted() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4), nn.ReLU())
    rows = torch.ones(5, 3)
    assert count_call(model, lambda: model(rows)) == 5 * 3 * 4 + 5 * 4 + 2 * 5 * 4
    query = torch.ones(1, 2, 6, 8)  # (B, heads, L, d)
    attention = nn.functional.scaled_dot_product_attention
    assert count_call(nn.Identity(), lambda: attention(query, query, query)) == 2 * 2 * 6 * 6 * 8
