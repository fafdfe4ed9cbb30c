"""The paper's GMACs (Tables 5 and 17)."""

import pytest
import torch
from torch import nn

from pipeline.experiments.cost import Pass, count_call, count_macs, make_call, measure
from pipeline.experiments.paper_tables import Row, read_tables

ROWS = [row for rows in read_tables()[1].values() for row in rows if row.cost]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.table}, {row.name}")
def test_macs_are_those_of_the_paper(row: Row) -> None:
    """To its last digit with Charm; the paper counts a plain ViT without its CLS token, ours has one."""
    assert row.cost is not None
    setting = Pass(**row.cost)
    gmacs, paper = count_macs(setting) / 1e9, row.paper[1]
    assert paper is not None
    if setting.num_scales > 1:
        assert round(gmacs, 2) == paper
    else:
        assert 1 < gmacs / paper < 1.006
    assert setting.max_seq_len == row.paper[0]


def test_the_cheapest_pass_is_measured_and_two_blocks_tell_what_all_need() -> None:
    (row,) = (row for row in ROWS if row.table == "table17" and row.name == "224x224")
    setting = Pass(**row.cost)  # type: ignore[arg-type]
    found = measure(setting)
    assert set(found) == set(row.metrics)
    assert found["gmacs"] == count_call(*make_call(setting, "cpu")) / 1e9
    assert found["ms"] > 0
    assert 80 < found["mb"] < 1000  # the weights alone take 82


def test_products_and_the_other_operations_are_counted() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4), nn.ReLU())
    rows = torch.ones(5, 3)
    assert count_call(model, lambda: model(rows)) == 5 * 3 * 4 + 5 * 4 + 2 * 5 * 4
    query = torch.ones(1, 2, 6, 8)  # (B, heads, L, d)
    attention = nn.functional.scaled_dot_product_attention
    assert count_call(nn.Identity(), lambda: attention(query, query, query)) == 2 * 2 * 6 * 6 * 8
