"""A backward gives the same bits each time, at the sizes and the number of threads at which torch splits the work.

Smaller tensors are not split over threads and show nothing: with two threads, advanced indexing of a trained tensor
gave other bits in most repeats at these sizes, and in none at 2 x 30 tokens.
"""

from typing import Any

import pytest
import torch

from charm.model.axes import PosEmbedAxes
from charm.model.pos_embed import axis_weights
from charm.model.vit import CharmViT

GRIDS = ((16, 20), (32, 40))
BATCH = 16
REPEATS = 8  # of which advanced indexing gives other bits in 5 or more


def draw_batch(model: CharmViT, seq_len: int) -> dict[str, torch.Tensor]:
    """Random tokens of two scales, a tenth of them padding."""
    random = torch.Generator().manual_seed(0)
    scale_id = torch.randint(2, (BATCH, seq_len), generator=random)
    size = torch.tensor(GRIDS)[scale_id]
    shape = (BATCH, seq_len, model.patch_size, model.patch_size, 3)
    return {
        "patches": torch.randint(256, shape, dtype=torch.uint8, generator=random),
        "patch_coord": (torch.rand(BATCH, seq_len, 2, generator=random) * size).long(),
        "scale_id": scale_id,
        "patch_valid": torch.arange(seq_len).expand(BATCH, -1) < 0.9 * seq_len,
    }


def repeat_backward(model: CharmViT, pos_embed: Any, batch: dict[str, torch.Tensor]) -> int:
    """Counts the repeats whose gradients differ from the first in any bit."""
    weights = torch.linspace(-1, 1, BATCH)[:, None]
    first: dict[str, torch.Tensor] = {}
    different = 0
    for _ in range(REPEATS):
        model.zero_grad()
        (model(**batch, pos_embed=pos_embed()) * weights).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        first = first or gradients
        different += any(not torch.equal(gradients[name], first[name]) for name in first)
    return different


SMALL: dict[str, Any] = {"img_size": 64, "patch_size": 4, "embed_dim": 64, "num_heads": 4}


@pytest.mark.parametrize(
    ("name", "settings", "seq_len"),
    [
        pytest.param("charm_demo", {}, 96, id="charm_demo at its own length"),
        pytest.param("vit_tiny_patch16_224", SMALL | {"depth": 1, "train_pos_embed": True}, 96, id="trained positions"),
        pytest.param("vit_tiny_patch16_224", SMALL | {"depth": 1, "reg_tokens": 4}, 96, id="registers"),
        pytest.param("vit_tiny_patch16_224", SMALL | {"depth": 0, "train_pos_embed": True}, 512, id="512 of width 64"),
        pytest.param("vit_tiny_patch16_224", SMALL | {"depth": 0, "embed_dim": 384}, 512, id="512 of width 384"),
        pytest.param("vit_small_patch16_dinov3", {"depth": 1, "embed_dim": 64, "num_heads": 4}, 96, id="rotary"),
    ],
)
def test_a_backward_repeats_bit_for_bit(name: str, settings: dict[str, Any], seq_len: int) -> None:
    torch.manual_seed(0)
    model = CharmViT(name, False, head="mean", **settings)
    batch = draw_batch(model, seq_len)
    assert repeat_backward(model, lambda: [model.pos_embed_tables(GRIDS)] * BATCH, batch) == 0
    gradient = model.scale_embed.grad if model.scale_embed is not None else None
    assert gradient is not None
    assert (gradient != 0).all(dim=1).all()


def test_trained_position_embeddings_by_their_axes_repeat_bit_for_bit() -> None:
    """As training looks them up."""
    torch.manual_seed(0)
    model = CharmViT("vit_tiny_patch16_224", False, train_pos_embed=True, head="mean", depth=0, **SMALL)
    batch = draw_batch(model, 512)
    axes = PosEmbedAxes({side: axis_weights(side, 16) for grid in GRIDS for side in grid}, model.learnt_grid.detach())
    rows = batch["patch_coord"]  # some row of the first axis
    assert repeat_backward(model, lambda: axes.gather(rows % 16, model.trained_grid), batch) == 0
