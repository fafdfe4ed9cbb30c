"""What the page shows of one photograph: which patches are native, what the model sees, and what moved its score.

All images are in one frame, that of the tokens' grid: the fitted image, `grids[-1] * p` pixels. Shown images are
shrunk; paths keep the frame's pixels.
"""

import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from charm.app.show import describe_area, find_importance
from charm.attribution import Attribution, attribute_tokens, map_contributions
from charm.drawing import UNITS, embed_png, encode_heat, encode_jpeg, encode_shade, mark_cells, shrink
from charm.scorer import CharmScorer
from charm.scores import Score
from charm.tokenization.tokens import Tokens

RAISED, LOWERED = (0, 167, 181), (226, 92, 20)  # RGB; told apart by the colour-blind, too
SHOWN_EDGE = 720  # pixels, longest edge of a shown image
_STRONG = 98  # percentile of contributions that gets the full colour: one patch must not pale all others
_OPAQUE = 215  # alpha, 0..255, of the full colour
# How the names of timm's vision transformers tell what they were trained by; the first that a name holds is taken.
_TRAINED_BY = {"dinov3": "DINOv3", "dinov2": "DINOv2", "dino": "DINO", "siglip2": "SigLIP 2", "siglip": "SigLIP"}
_TRAINED_BY |= {"clip": "CLIP", "mae": "MAE", "augreg": "AugReg"}


@dataclass(frozen=True)
class Importance:
    """The importance map that the native patches were chosen by; lowest, highest: labels of its colour scale."""

    name: str
    image: str
    lowest: str
    highest: str


@dataclass(frozen=True)
class Shown:
    """The tokens of a photograph, drawn for the page; openapi.json describes each field (Card)."""

    image_hw: tuple[int, int]
    downscaled_to: tuple[int, int] | None
    frame_hw: tuple[int, int]
    image: str
    native: str
    shade: str
    seen: str
    tokens: tuple[dict[str, float], ...]
    max_seq_len: int
    area_seen: str | None
    importance: Importance | None


def show_tokens(
    scorer: CharmScorer, image: np.ndarray, tokens: Tokens, saliency_mask: np.ndarray | None = None
) -> Shown:
    """Describes the tokens of an image, uint8 (H, W, 3), and of its saliency mask, bool (H, W)."""
    patch_size = tokens.patches.shape[1]
    scales = range(len(tokens.grids) - 1, -1, -1)
    frame_h, frame_w = (side * patch_size for side in tokens.grids[-1])
    native = mark_cells(tokens, scales[0])
    counts = [int((tokens.patch_valid & (tokens.scale_id == scale)).sum()) for scale in scales]
    image_hw = image.shape[0], image.shape[1]
    seen_hw = scorer.limited_hw(image_hw)
    return Shown(
        image_hw=image_hw,
        downscaled_to=None if seen_hw == image_hw else seen_hw,
        frame_hw=(frame_h, frame_w),
        image=encode_jpeg(shrink(scorer.tokenizer.frame(scorer.limit_size(image)), SHOWN_EDGE)),
        native=trace_border(native, patch_size),
        shade=encode_shade(native),
        seen=encode_jpeg(shrink(tokens.to_image(), SHOWN_EDGE)),
        tokens=tuple(
            {"count": count, "pixels": frame_w / tokens.grids[scale][1]}
            for scale, count in zip(scales, counts, strict=True)
            if tokens.grids[scale] != (0, 0)
        ),
        max_seq_len=len(tokens.patch_valid),
        area_seen=describe_area(scorer, image),
        importance=_show_importance(scorer, image, saliency_mask) if native.any() else None,
    )


def _show_importance(scorer: CharmScorer, image: np.ndarray, saliency_mask: np.ndarray | None) -> Importance | None:
    found = find_importance(scorer, image, saliency_mask)
    if found is None:
        return None
    name = scorer.settings.cutter["selection"]
    if name in UNITS:
        return Importance(name, encode_heat(found), f"{found.min():.3g}", f"{found.max():.3g} {UNITS[name]}")
    return Importance(name, encode_heat(shrink(found)), "background", f"object, {found.mean():.0%} of the image")


def trace_border(marked: np.ndarray, cell_size: int) -> str:
    """Returns an SVG path along the border of the True cells of a bool (h, w), squares of cell_size pixels."""
    parts = []
    for axis, line in ((0, "h"), (1, "v")):
        cells = np.pad(marked if axis == 0 else marked.T, 1).astype(np.int8)
        borders = np.diff(cells, axis=0)[:, 1:-1] != 0  # (h + 1, w): between a cell and the one before it
        steps = np.diff(np.pad(borders, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        for (at, first), (_, end) in zip(np.argwhere(steps == 1), np.argwhere(steps == -1), strict=True):
            x, y = (first, at) if axis == 0 else (at, first)
            parts.append(f"M{x * cell_size} {y * cell_size}{line}{(end - first) * cell_size}")
    return "".join(parts)


def attribute_score(scorer: CharmScorer, tokens: Tokens) -> Attribution:
    """Attributes the score of an image's draw, on the scale of 0..1, to its tokens."""
    pos_embed = scorer.embed_positions([tokens], len(tokens.patch_valid))
    return attribute_tokens(scorer.model, tokens, pos_embed, scorer.unit_bins.tolist())


def show_contributions(scorer: CharmScorer, tokens: Tokens, attribution: Attribution) -> dict[str, Any]:
    """Draws the contributions of the tokens to the score, on the scale of the labels; for their names see openapi.json.

    The scores are not clipped to the scale, or the sum would not be right.
    """
    low, high = scorer.score_range
    by_patch = map_contributions(tokens, attribution.contributions) * (high - low)
    shown = np.nan_to_num(by_patch)
    limit = float(np.percentile(np.abs(shown), _STRONG)) or float(np.abs(shown).max()) or 1.0
    return {
        "image": encode_overlay(shown / limit),
        "limit": limit,
        "total": float(shown.sum(dtype=np.float64)),
        "score": low + (high - low) * attribution.score,
        "baseline_score": low + (high - low) * attribution.baseline_score,
        "left_out": 0.0 if attribution.is_complete else (high - low) * attribution.residual,
        "raised": f"rgb{RAISED}",
        "lowered": f"rgb{LOWERED}",
    }


def encode_overlay(strength: np.ndarray) -> str:
    """Returns a data URI of (h, w), one pixel per value: -1 is LOWERED, 1 is RAISED, 0 is transparent; clipped."""
    overlay = np.empty((*strength.shape, 4), np.uint8)
    overlay[..., :3] = np.where(strength[..., None] > 0, RAISED, LOWERED)
    overlay[..., 3] = np.rint(np.abs(strength).clip(max=1) * _OPAQUE)
    return embed_png(overlay)


def describe_backbone(name: str) -> str:
    """Returns the name of a backbone in words, as "DINOv2, a small vision transformer with patches of 14 pixels"."""
    if name == "charm_demo":
        return "the small vision transformer that Charm brings"
    found = re.match(r"vit_(?P<size>\w+?)_patch(?P<pixels>\d+)(?P<rest>.*)", name)
    if found is None:
        return name
    size, article = found["size"].replace("_", " "), "an" if found["size"][0] in "aeiou" else "a"
    words = f"{article} {size} vision transformer with patches of {found['pixels']} pixels"
    trained_by = next((told for key, told in _TRAINED_BY.items() if key in found["rest"]), "")
    return ", ".join(filter(None, [trained_by, words]))


def describe_card(score: Score, shown: Shown, contributions: dict[str, Any]) -> dict[str, Any]:
    """Returns the reply to POST /explain, for JSON."""
    return describe_score(score) | asdict(shown) | {"contributions": contributions}


def describe_score(score: Score) -> dict[str, Any]:
    """Returns score, spread, interval and distribution, for JSON."""
    distribution = None if score.distribution is None else score.distribution.tolist()
    facts = {"score": score.score, "spread": score.spread, "interval": score.interval(), "raw": score.raw}
    return facts | {"distribution": distribution}
