"""CharmViT: a timm vision transformer that takes tokens of several scales (Charm, sections 3.2.3-3.2.4, figure 2).

The transformer itself is left as it is. Around it: position embeddings come from outside, one per token; a learnt scale
embedding is added; tokens that are padding are never attended to; one linear layer reads the CLS token (or the mean).
"""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.patch_embed import PatchEmbedResamplerFixedOrigSize
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from charm.model.backbones import Backbone, check_backbone, create_backbone, is_rotary
from charm.model.config import PosEmbedConfig, ViTConfig
from charm.model.pooling import pool_tokens
from charm.model.pos_embed import gather_pos_embed, learnt_grid, resample_pos_embed
from charm.model.protocol import LearntMode, Model
from charm.model.resizer import Resizer
from charm.tokenization.tokens import ARRAYS, TokenBatch


class CharmViT(Model):
    """Scores images that CharmTokenizer has cut; raises ValueError for a backbone that cannot be used so.

    Args:
        backbone: name of a timm ViT, or such a model. The model is used as it is and loses its classifier.
        pretrained: see `create_backbone`; only with a name.
        num_scales: of the tokenizer. 1 for a plain ViT on single-scale tokens, which adds no parameters.
        num_outputs: 1 for a score, the number of bins for a distribution (the outputs are then logits).
        head: input of the linear layer: "cls" (the paper); "mean" of the tokens that are not padding, for backbones
            without a CLS token; "native" or "coarse", the mean of those of the finest scale or of the others; several
            of these side by side ("cls_mean"); or "map", the backbone's own attention pooling over the tokens that
            are not padding (SigLIP), which is left out otherwise.
        normalize: whether pixels are normalized by the mean and deviation of the backbone's pre-training; the paper
            does not (table 9).
        train_pos_embed: whether the learnt position embeddings are fine-tuned; the paper freezes them (section 4.2).
        num_residuals: of the input, for which a learnt resizer is made.
        settings: passed on to timm with a name.
    """

    heads = ("cls", "cls_mean", "mean", "map", "native", "coarse", "native_coarse", "cls_native_coarse")

    def __init__(
        self,
        backbone: str | Backbone,
        pretrained: bool = True,
        num_scales: int = 2,
        num_outputs: int = 1,
        head: str = "cls",
        normalize: bool = False,
        train_pos_embed: bool = False,
        num_residuals: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__()
        if head not in self.heads:
            if isinstance(backbone, str):  # one that is not for this kind of model is refused as such
                create_backbone(backbone, False, **settings)
            raise ValueError(f"head={head!r}: expected one of {', '.join(self.heads)}")
        if num_scales < 1:
            raise ValueError(f"num_scales={num_scales}: expected at least 1")
        for name in ("drop_rate", "pos_drop_rate", "patch_drop_rate"):
            if settings.get(name):
                raise ValueError(f"{name}={settings[name]}: there is no such dropping here, only within the blocks")
        if isinstance(backbone, str):
            vit = create_backbone(backbone, pretrained, **settings)
        else:
            vit = check_backbone(backbone, type(backbone).__name__)
        pools = isinstance(vit.attn_pool, AttentionPoolLatent)
        if head == "map" and not pools:
            raise ValueError("head='map' is attention pooling that was pre-trained, and this backbone has none")
        if vit.cls_token is None and "cls" in head.split("_"):
            choice = "mean or map" if pools else "mean"
            raise ValueError(f"head={head!r} reads a CLS token, and this backbone has none: choose {choice}")
        # A classifier or a pooling that nothing reads holds up training on several devices.
        vit.reset_classifier(0, None if vit.attn_pool is None or head == "map" else "")
        self.vit, self.head_kind, self.num_scales = vit, head, num_scales
        self.rotary = is_rotary(vit)
        self.antialias = bool(getattr(vit, "antialias", False))  # positions were learnt resampled with it (SigLIP 2)
        # Prefix tokens (CLS, registers) that have a position embedding of their own.
        self.num_pos_prefix = 0 if self.rotary or vit.no_embed_class else int(vit.num_prefix_tokens)
        if not self.rotary:
            self.pos_embed.requires_grad_(train_pos_embed)
        elif train_pos_embed:
            raise ValueError("rotary position embeddings are not learnt: leave them frozen")
        self._keep_normalization(normalize)
        self.resizer = Resizer(num_residuals) if num_residuals else None
        self.scale_embed = self.mask_token = None  # that of padding, as in the paper; nothing attends to it
        if num_scales > 1:
            self.scale_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_scales, vit.embed_dim), std=0.02))
            self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(vit.embed_dim), std=0.02))
        self._add_head(vit.embed_dim * len(head.split("_")), num_outputs)
        self._resample_kernel = PatchEmbedResamplerFixedOrigSize((self.patch_size, self.patch_size))

    @classmethod
    def from_config(cls, config: ViTConfig, pretrained: bool = False) -> Self:
        names = ("backbone", "num_scales", "num_outputs", "head", "normalize", "num_residuals")
        settings: dict[str, Any] = {name: getattr(config, name) for name in names}
        if (shape := config.shape) is not None:
            settings |= {"embed_dim": shape.width, "depth": shape.depth, "num_heads": shape.heads}
            settings["img_size"] = shape.edge
        return cls(**settings, pretrained=pretrained, train_pos_embed=config.pos_embed == "trainable")

    @property
    def backbone(self) -> nn.Module:
        return self.vit

    @property
    def body(self) -> nn.Module:
        blocks: nn.Module = self.vit.blocks
        return blocks

    @property
    def patch_size(self) -> int:
        return int(self.vit.patch_embed.patch_size[0])

    @property
    def pos_embed(self) -> Tensor:
        """The learnt position embeddings of the backbone, float (1, num_pos_prefix + g * g, D)."""
        assert self.vit.pos_embed is not None  # check_backbone refuses the others
        return self.vit.pos_embed

    @property
    def learnt_grid(self) -> Tensor | None:
        return None if self.rotary else learnt_grid(self.pos_embed, self.num_pos_prefix)

    @property
    def trained_grid(self) -> Tensor | None:
        return None if self.rotary or not self.pos_embed.requires_grad else self.learnt_grid

    def pos_embed_config(self, mode: LearntMode, antialias: bool) -> PosEmbedConfig:
        if self.rotary:
            return PosEmbedConfig("rotary", False)
        return PosEmbedConfig(getattr(self.vit, "pos_embed_mode", mode), antialias or self.antialias)

    def compile_backbone(self) -> None:
        """Compiles the blocks: they are alike, so one is compiled for all; lengths vary."""
        for block in self.vit.blocks:
            block.compile(dynamic=True)

    @property
    def num_layers(self) -> int:
        return len(self.vit.blocks) + 2

    def layer_of(self, parameter: str) -> int:
        """Returns the layer of a named parameter: 0 before the blocks, then one per block, the last for all others.

        The scale embedding is in the last: slowed down like its neighbours before the blocks, it would not learn.
        """
        if block := re.match(r"vit\.blocks\.(\d+)\.", parameter):
            return int(block[1]) + 1
        first = re.match(r"vit\.(patch_embed|cls_token|reg_token|pos_embed|norm_pre)\b", parameter)
        return 0 if first else self.num_layers - 1

    def pos_embed_tables(self, grids: Sequence[tuple[int, int]], mode: str = "bilinear") -> list[Tensor]:
        """Returns the backbone's position embeddings on each grid, (h, w, D); empty for a grid of (0, 0).

        A rotary backbone has the sines and cosines of the tokens' places within the image, (h, w, 2 * d) for heads of
        width d: the place of a coarse token is the middle of the native tokens that it replaces.
        """
        unused = self._pos_embed_table((1, 1), mode)[:0, :0]
        return [unused if grid == (0, 0) else self._pos_embed_table(grid, mode) for grid in grids]

    def fixed_axis(self, length: int) -> Tensor:
        """Returns a rotary backbone's share of the rows and of the columns of a grid, (2, length, 2 * d).

        The table of a grid of (h, w) is the sum of the rows' share for h and the columns' share for w.
        """
        rows, columns, middle = self.pos_embed_tables([(length, 1), (1, length), (1, 1)])
        return torch.stack([rows[:, 0], columns[0] - middle[0]])

    def _pos_embed_table(self, grid_hw: tuple[int, int], mode: str) -> Tensor:
        if not self.rotary:
            return resample_pos_embed(self.pos_embed, grid_hw, mode, self.antialias, self.num_pos_prefix)
        rope: Any = self.vit.rope
        training = rope.training
        rope.eval()  # in training it would shift and stretch the coordinates of each grid by itself
        table: Tensor = rope.get_embed(shape=list(grid_hw)).reshape(*grid_hw, -1)
        rope.train(training)
        return table

    def forward(
        self,
        patches: Tensor | TokenBatch,
        patch_coord: Tensor | None = None,
        scale_id: Tensor | None = None,
        patch_valid: Tensor | None = None,
        pos_embed: Tensor | Sequence[Sequence[Tensor]] | None = None,
        residuals: Tensor | None = None,
    ) -> Tensor:
        """Scores a batch, `model(tokenizer(images))`, or its parts.

        Args:
            patches: a batch of a tokenizer, whose position embeddings are resampled here; or, with all that follows,
                uint8 (B, L, p, p, 3), RGB, or float on the same scale, 0..255, to differentiate by pixels. Patches of
                another size are projected by a resampled kernel (FlexiViT: Beyer et al., CVPR 2023).
            patch_coord: integer (B, L, 2), (y, x) on the grid of the token's scale; read only to look up tables.
            scale_id: integer (B, L), 0 = coarsest.
            patch_valid: bool (B, L), False where padding. It may be left on the CPU: looking for padding there does not
                wait for the device.
            pos_embed: float (B, L, D), for a rotary backbone (B, L, 2 * d); or the tables of each image
                (`pos_embed_tables`), to be looked up here.
            residuals: int16 or float (B, L, p, p, 3 K), of inputs that have them.

        Returns:
            float (B, num_outputs).

        >>> from charm import CharmTokenizer
        >>> import numpy as np
        >>> model = CharmViT("charm_demo")
        >>> batch = CharmTokenizer(max_seq_len=64)([np.zeros((300, 400, 3), np.uint8)] * 2)
        >>> model(batch).shape
        torch.Size([2, 1])
        """
        if isinstance(patches, TokenBatch):
            arrays = [getattr(patches, name) for name in ARRAYS]
            pos_embed = [self.pos_embed_tables(grids) for grids in patches.grids]
            on_device = (torch.from_numpy(array).to(self.head.weight.device) for array in arrays)
            patches, patch_coord, scale_id, patch_valid = on_device
        if patch_coord is None or scale_id is None or patch_valid is None or pos_embed is None:
            raise TypeError(
                "expected a batch of a tokenizer, or patches, patch_coord, scale_id, patch_valid, pos_embed"
            )
        if not isinstance(pos_embed, Tensor):
            images = zip(pos_embed, patch_coord, scale_id, strict=True)
            pos_embed = torch.stack([gather_pos_embed(*one) for one in images])
        return self.score_features(self.features(patches, patch_coord, scale_id, patch_valid, pos_embed, residuals))

    def features(
        self,
        patches: Tensor,
        patch_coord: Tensor,
        scale_id: Tensor,
        patch_valid: Tensor,
        pos_embed: Tensor,
        residuals: Tensor | None = None,
    ) -> Tensor:
        attn_mask = self.attn_mask_of(patch_valid, patches.device)
        states = self.run_blocks(patches, scale_id, patch_valid, pos_embed, attn_mask, residuals)
        return self.pool(self.head_kind, deque(states, maxlen=1).pop(), scale_id, patch_valid, attn_mask)

    def run_blocks(
        self,
        patches: Tensor,
        scale_id: Tensor,
        patch_valid: Tensor,
        pos_embed: Tensor,
        attn_mask: Tensor | None,
        residuals: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Yields what the first block reads, then what each gives, (B, prefix + L, D); arguments as of `forward`.

        The mask is that of `attn_mask`, or one of numbers that are added; no step depends on the data otherwise.
        """
        x = self._embed(patches, residuals)
        if self.scale_embed is not None and self.mask_token is not None:
            valid = patch_valid.to(x.device, non_blocking=True).unsqueeze(-1)
            # Not self.scale_embed[scale_id]: its backward adds in any order where there are two threads or more.
            scale = nn.functional.embedding(scale_id.long(), self.scale_embed)
            x = torch.where(valid, x, self.mask_token.to(x.dtype)) + scale
        extra: dict[str, Any] = {"attn_mask": attn_mask}
        if self.rotary:
            extra["rope"] = pos_embed.unsqueeze(1)  # the same for every head
        else:
            x = x + pos_embed.to(self.pos_embed.dtype)  # not to x.dtype, which autocast may have made half
        x = torch.cat([self._prefix().expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        x = self.vit.norm_pre(x)
        yield x
        for block in self.vit.blocks:
            if self.vit.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, **extra)
            else:
                x = block(x, **extra)
            yield x

    def pool(self, head: str, x: Tensor, scale_id: Tensor, patch_valid: Tensor, attn_mask: Tensor | None) -> Tensor:
        """Normalizes what a block gives, (B, prefix + L, D), and pools it to the input of a kind of head, (B, F)."""
        x = self.vit.norm(x)
        if head == "map":
            first = 0 if self.vit.pool_include_prefix else self.vit.num_prefix_tokens
            if attn_mask is not None:
                attn_mask = attn_mask[..., first:]
                if attn_mask.dtype == torch.bool:  # which the pooling's plain attention would add as 0 and 1
                    attn_mask = torch.zeros_like(attn_mask, dtype=x.dtype).masked_fill(~attn_mask, -torch.inf)
            pooled: Tensor = self.vit.fc_norm(self.vit.attn_pool(x[:, first:], attn_mask))
            return pooled
        valid, is_native = patch_valid.to(x.device, non_blocking=True), scale_id >= self.num_scales - 1
        parts = pool_tokens(head.split("_"), x, self.vit.num_prefix_tokens, valid, is_native)
        # In the place of `norm` for backbones that were trained on the mean.
        return torch.cat([self.vit.fc_norm(part) for part in parts], dim=1)

    def _embed(self, patches: Tensor, residuals: Tensor | None = None) -> Tensor:
        """Applies the backbone's patch projection as one matrix product: (B, L, P, P, 3) -> (B, L, D).

        A backbone that embeds patches otherwise has `embed_patches` (MUSIQ).
        """
        embed: Any = self.vit.patch_embed
        proj, pixels = embed.proj, self._scale_pixels(patches, embed.proj.weight.dtype, residuals)
        if hasattr(embed, "embed_patches"):
            found: Tensor = embed.embed_patches(pixels)
            return found
        # Not in bfloat16: 0.5 and 0.502 are one number there, and fine detail is gone before the first block (1 % of
        # the work of a small ViT).
        with torch.autocast(patches.device.type, enabled=False):
            own = patches.shape[2] == self.patch_size
            kernel = proj.weight if own else self._resample_kernel(proj.weight, list(patches.shape[2:4]))
            weight = kernel.permute(0, 2, 3, 1).flatten(1)  # (D, 3, P, P) -> (D, P * P * 3), as patches lie in memory
            projected = nn.functional.linear(pixels.flatten(2), weight, proj.bias)
        embedded: Tensor = embed.norm(projected)
        return embedded

    def _prefix(self) -> Tensor:
        """Returns CLS and register tokens with their own position embeddings, (1, prefix, D); prefix may be 0."""
        none = self.vit.patch_embed.proj.weight.new_zeros(1, 0, self.vit.embed_dim)
        prefix = torch.cat([none, *(t for t in (self.vit.cls_token, self.vit.reg_token) if t is not None)], dim=1)
        return prefix + self.pos_embed[:, : self.num_pos_prefix] if self.num_pos_prefix else prefix

    def attn_mask_of(self, patch_valid: Tensor, device: torch.device) -> Tensor | None:
        """Returns `attn_mask` on a device; None without padding, so that the fast kernels are used."""
        return None if patch_valid.all() else self.attn_mask(patch_valid).to(device, non_blocking=True)

    def attn_mask(self, patch_valid: Tensor) -> Tensor:
        """Returns bool (B, 1, 1, prefix + L), True where a key may be attended to."""
        prefix = patch_valid.new_ones(patch_valid.shape[0], self.vit.num_prefix_tokens)
        return torch.cat([prefix, patch_valid], dim=1)[:, None, None, :]
