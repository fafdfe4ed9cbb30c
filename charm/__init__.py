"""Charm: fine-tuning vision transformers on photographs at native resolution (Behrad, Tuytelaars, Wagemans, CVPR 2025).

    tokenizer = CharmTokenizer(patch_size=14, max_seq_len=512)
    tokens = tokenizer(image, seed=0, epoch=0, key="photo-1")
    model = CharmViT("vit_small_patch14_dinov2.lvd142m")
    scorer = CharmScorer.from_pretrained("runs/evaluate/model")

Arrays in, arrays out: what is imported from here reads no files but those of a model's folder, knows no pipeline, and
draws nothing at random but from (seed, epoch, key).
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from charm.model.pos_embed import resample_pos_embed
    from charm.model.vit import CharmViT
    from charm.scorer import CharmScorer
    from charm.scores import Score
    from charm.tokenization.importance import score_patches
    from charm.tokenization.tokenizer import CharmTokenizer
    from charm.tokenization.tokens import Tokens

# Names are loaded on first use: a process that only cuts patches need not wait seconds for torch and timm.
_HOMES = {
    "CharmScorer": "charm.scorer",
    "CharmTokenizer": "charm.tokenization.tokenizer",
    "CharmViT": "charm.model.vit",
    "Score": "charm.scores",
    "Tokens": "charm.tokenization.tokens",
    "resample_pos_embed": "charm.model.pos_embed",
    "score_patches": "charm.tokenization.importance",
}

__all__ = ["CharmScorer", "CharmTokenizer", "CharmViT", "Score", "Tokens", "resample_pos_embed", "score_patches"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'charm' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from charm.runtime.errors import EXTRAS, name_extra

        if (error.name or "").split(".")[0] not in EXTRAS:
            raise
        raise ModuleNotFoundError(f"charm.{name}: {name_extra(error)}", name=error.name) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
