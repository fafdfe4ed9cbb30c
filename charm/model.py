"""CharmViT: a timm vision transformer that takes tokens of several scales (Charm, sections 3.2.3-3.2.4, figure 2).

The transformer itself is left as it is. Around it: position embeddings come from outside, one per token; a learnt scale
embedding is added; tokens that are padding are never attended to; one linear layer reads the CLS token.
"""

import difflib
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from charm import demo_backbone  # noqa: F401  (registers "charm_demo" with timm)
from charm.pos_embed import gather_pos_embed, learnt_grid, resample_pos_embed

HEADS = ("cls", "cls_mean")
Backbone = VisionTransformer | Eva  # Eva is how timm builds DINOv3: the same, with rotary position embeddings


def create_backbone(name: str, pretrained: bool = True, **settings: Any) -> Backbone:
    """A timm vision transformer without its classifier.

    Args:
        name: as in `timm.list_models("vit_*")`; "charm_demo" for the small built-in one.
        pretrained: whether to load the published weights (downloaded to the hub's cache on first use).
        settings: passed on to timm.

    Raises:
        ValueError: unknown to timm, or not a vision transformer with position embeddings that fit any grid.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        near = ", ".join(difflib.get_close_matches(architecture, timm.list_models(), n=5))
        raise ValueError(f"backbone={name!r} is not a model of timm {timm.__version__}; near it: {near or 'none'}")
    return check_backbone(timm.create_model(name, pretrained=pretrained, num_classes=0, **settings), name)


def check_backbone(vit: Any, name: str) -> Backbone:
    """The model itself; ValueError unless it is a vision transformer that CharmViT can do the forward pass of."""
    if not is_rotary(vit) and (not isinstance(vit, VisionTransformer) or vit.pos_embed is None):
        raise ValueError(
            f"backbone={name!r} is a {type(vit).__name__} without learnt absolute position embeddings on a plain grid "
            "of tokens, which Charm resamples for each picture, or DINOv3's rotary ones: choose a ViT, for example "
            "vit_small_patch14_dinov2"
        )
    num_tokens = int(vit.cls_token is not None) + (0 if vit.reg_token is None else vit.reg_token.shape[1])
    if not isinstance(vit.patch_embed, PatchEmbed) or vit.num_prefix_tokens != num_tokens:
        raise ValueError(
            f"backbone={name!r} has more before its blocks than a projection of patches, a CLS token and registers "
            "(convolutions or a distillation token, say): choose a plain ViT, for example vit_small_patch14_dinov2"
        )
    found: Backbone = vit
    return found


def is_rotary(vit: nn.Module) -> bool:
    """Whether positions enter as DINOv3's rotary embeddings: coordinates from -1 to 1 over the picture, per axis."""
    return (
        isinstance(vit, Eva)
        and vit.pos_embed is None
        and isinstance(vit.rope, RotaryEmbeddingDinoV3)
        and vit.rope.normalize_coords == "separate"
    )


class CharmViT(nn.Module):
    """Scores pictures that CharmTokenizer has cut.

    Args:
        backbone: name of a timm ViT, or such a model.
        pretrained: see `create_backbone`; only with a name.
        num_scales: of the tokenizer. 1 for a plain ViT on single-scale tokens, which adds no parameters.
        num_outputs: 1 for a score, the number of bins for a distribution (the outputs are then logits).
        head: what the linear layer reads: "cls" (the paper), or "cls_mean", the CLS token beside the mean of the tokens
            that are not padding.
        settings: passed on to timm with a name.

    Attributes:
        scale_embed: float (num_scales, D), learnt; None with one scale.
        mask_token: float (D,), stands in the place of padding, as in the paper; None with one scale. As nothing attends
            to padding, it never gets a gradient.

    Raises:
        ValueError: the backbone cannot be used, an unknown head, or no scale.
    """

    def __init__(
        self,
        backbone: str | Backbone,
        pretrained: bool = True,
        num_scales: int = 2,
        num_outputs: int = 1,
        head: str = "cls",
        **settings: Any,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"head={head!r}: expected one of {', '.join(HEADS)}")
        if num_scales < 1:
            raise ValueError(f"num_scales={num_scales}: expected at least 1")
        if isinstance(backbone, str):
            vit = create_backbone(backbone, pretrained, **settings)
        else:
            vit = check_backbone(backbone, type(backbone).__name__)
        if vit.cls_token is None:
            raise ValueError(f"head={head!r} reads a CLS token, and this backbone has none")
        self.vit = vit
        self.head_kind = head
        self.rotary = is_rotary(vit)
        if not self.rotary:  # the pre-trained table is the source of every picture's and stays as it is (section 4.2)
            self.pos_embed.requires_grad_(False)
        multiscale = num_scales > 1
        self.scale_embed = nn.Parameter(torch.zeros(num_scales, vit.embed_dim)) if multiscale else None
        self.mask_token = nn.Parameter(torch.zeros(vit.embed_dim)) if multiscale else None
        for parameter in (self.scale_embed, self.mask_token):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        self.head = nn.Linear(vit.embed_dim * (2 if head == "cls_mean" else 1), num_outputs)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @property
    def patch_size(self) -> int:
        """p, pixels."""
        return int(self.vit.patch_embed.patch_size[0])

    @property
    def pos_embed(self) -> Tensor:
        """What the backbone learnt, float (1, num_pos_prefix + g * g, D)."""
        assert self.vit.pos_embed is not None  # check_backbone refuses the others
        return self.vit.pos_embed

    @property
    def num_pos_prefix(self) -> int:
        """How many prefix tokens (CLS, registers) have a position embedding of their own."""
        return 0 if self.rotary or self.vit.no_embed_class else int(self.vit.num_prefix_tokens)

    @property
    def learnt_grid(self) -> Tensor:
        """Its position embeddings without the prefix, float (g, g, D)."""
        return learnt_grid(self.pos_embed, self.num_pos_prefix)

    def pos_embed_tables(self, grids: Sequence[tuple[int, int]], mode: str = "bilinear") -> list[Tensor]:
        """The backbone's position embeddings on each grid, (h, w, D); empty for a grid of (0, 0).

        Those of a rotary backbone are the sines and cosines of the tokens' places within the picture, (h, w, 2 * d) for
        heads of width d: a coarse token stands in the middle of the native ones that it stands for.
        """
        unused = self._pos_embed_table((1, 1), mode)[:0, :0]
        return [unused if grid == (0, 0) else self._pos_embed_table(grid, mode) for grid in grids]

    def rotary_axis(self, length: int) -> tuple[Tensor, Tensor]:
        """A rotary backbone's share of the rows and of the columns of a grid, (length, 2 * d) each.

        The table of a grid of (h, w) is the sum of the rows' share for h and the columns' share for w.
        """
        rows, columns, middle = self.pos_embed_tables([(length, 1), (1, length), (1, 1)])
        return rows[:, 0], columns[0] - middle[0]

    def _pos_embed_table(self, grid_hw: tuple[int, int], mode: str) -> Tensor:
        if not self.rotary:
            return resample_pos_embed(self.pos_embed.detach(), grid_hw, mode, num_prefix_tokens=self.num_pos_prefix)
        rope: Any = self.vit.rope
        training = rope.training
        rope.eval()  # in training it would shift and stretch the coordinates of each grid by itself
        table: Tensor = rope.get_embed(shape=list(grid_hw)).reshape(*grid_hw, -1)
        rope.train(training)
        return table

    def forward(
        self,
        patches: Tensor,
        patch_coord: Tensor,
        scale_id: Tensor,
        patch_valid: Tensor,
        pos_embed: Tensor | Sequence[Sequence[Tensor]],
    ) -> Tensor:
        """Scores a batch.

        Args:
            patches: uint8 (B, L, p, p, 3), RGB.
            patch_coord: integer (B, L, 2), (y, x) on the grid of the token's scale; read only to look up tables.
            scale_id: integer (B, L), 0 = coarsest.
            patch_valid: bool (B, L), False where padding.
            pos_embed: float (B, L, D), for a rotary backbone (B, L, 2 * d); or the tables of each picture
                (`pos_embed_tables`), to be looked up here.

        Returns:
            float (B, num_outputs).

        >>> from charm import CharmTokenizer
        >>> import numpy as np
        >>> model = CharmViT("charm_demo")
        >>> batch = CharmTokenizer(max_seq_len=64)([np.zeros((300, 400, 3), np.uint8)] * 2)
        >>> arrays = (batch.patches, batch.patch_coord, batch.scale_id, batch.patch_valid)
        >>> tables = [model.pos_embed_tables(grids) for grids in batch.grids]
        >>> model(*map(torch.from_numpy, arrays), pos_embed=tables).shape
        torch.Size([2, 1])
        """
        if not isinstance(pos_embed, Tensor):
            samples = zip(pos_embed, patch_coord, scale_id, strict=True)
            pos_embed = torch.stack([gather_pos_embed(*sample) for sample in samples])
        x = self._embed(patches)
        valid = patch_valid.unsqueeze(-1)
        if self.scale_embed is not None and self.mask_token is not None:
            x = torch.where(valid, x, self.mask_token.to(x.dtype)) + self.scale_embed[scale_id.long()]
        positions: dict[str, Tensor] = {}
        if self.rotary:
            positions["rope"] = pos_embed.unsqueeze(1)  # the same for every head
        else:
            x = x + pos_embed.to(x.dtype)
        x = torch.cat([self._prefix().expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        x = self.vit.norm_pre(x)
        attn_mask = self._attn_mask(patch_valid)
        for block in self.vit.blocks:
            x = block(x, attn_mask=attn_mask, **positions)
        x = self.vit.fc_norm(self.vit.norm(x))  # one of them does nothing; both work token by token
        features = x[:, 0]
        if self.head_kind == "cls_mean":
            tokens = torch.where(valid, x[:, self.vit.num_prefix_tokens :], 0)
            features = torch.cat([features, tokens.sum(1) / valid.sum(1).clamp(min=1)], dim=1)
        output: Tensor = self.head(features)
        return output

    def _embed(self, patches: Tensor) -> Tensor:
        """The backbone's patch projection, as one matrix product; values 0..1, not normalized (table 9)."""
        proj = self.vit.patch_embed.proj
        pixels = patches.flatten(2).to(proj.weight.dtype) / 255
        weight = proj.weight.permute(0, 2, 3, 1).flatten(1)  # (D, 3, p, p) -> (D, p * p * 3), as patches lie in memory
        embedded: Tensor = self.vit.patch_embed.norm(nn.functional.linear(pixels, weight, proj.bias))
        return embedded

    def _prefix(self) -> Tensor:
        """CLS and register tokens with their own position embeddings, (1, prefix, D)."""
        prefix = torch.cat([t for t in (self.vit.cls_token, self.vit.reg_token) if t is not None], dim=1)
        return prefix + self.pos_embed[:, : self.num_pos_prefix] if self.num_pos_prefix else prefix

    def _attn_mask(self, patch_valid: Tensor) -> Tensor | None:
        """True where a key may be attended to, (B, 1, 1, prefix + L); None without padding, for the fast kernels."""
        if bool(patch_valid.all()):
            return None
        prefix = patch_valid.new_ones(len(patch_valid), self.vit.num_prefix_tokens)
        return torch.cat([prefix, patch_valid], dim=1)[:, None, None, :]
