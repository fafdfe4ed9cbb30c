"""A photograph as a model's tokenizer sees it, in numbers, arrays and images: the commands `tokenize` and `show`."""

import io
from dataclasses import replace

import cv2
import numpy as np

from charm.app.reading import find_mask
from charm.drawing import SHADE, mark_cells, paint_heat
from charm.inputs.preparation import Preparation
from charm.runtime.errors import UserError
from charm.tokenization.draws import pixel_key
from charm.tokenization.geometry import downscale
from charm.tokenization.importance import IMPORTANCE
from charm.tokenization.selection import SELECTIONS
from charm.tokenization.tokens import Tokens

VIEWS = ("native", "importance", "seen")  # what `draw_views` may give
_MARK = (255, 212, 59)  # RGB, as in the report
_LINE_SHARE = 500  # an outline is one pixel wide for so many of the longest edge


def change_selection(model: Preparation, selection: str) -> Preparation:
    """Returns what a model sees if its patches are chosen otherwise than in training.

    Raises:
        UserError: the selection is unknown, or the model's tokenizer selects nothing.
    """
    if selection not in SELECTIONS:
        raise UserError(f"--selection {selection}: expected one of {', '.join(SELECTIONS)}")
    settings = model.settings
    if not model.tokenizer.draws:
        raise UserError(f"--selection {selection}: of this model's input ({settings.name}) no patches are selected")
    changed = replace(settings, cutter=settings.cutter | {"selection": selection})
    return Preparation(changed, model.max_edge, model.seed, model.draws, model.saliency, model.device, model.colour)


def cut_image(model: Preparation, image: np.ndarray) -> tuple[Tokens, np.ndarray | None]:
    """Returns the tokens of the first draw of uint8 (H, W, 3), and the saliency mask, bool (H, W), if any."""
    mask = find_mask(model, image)
    return model.tokenize(image, mask, draws=1)[0], mask


def describe_tokens(model: Preparation, image: np.ndarray, tokens: Tokens) -> list[str]:
    """Lines about what the tokenizer did to uint8 (H, W, 3); all sizes are height x width."""
    limited, tokenizer = model.limit_size(image), model.tokenizer
    downscaled = f", downscaled to {_show_size(limited.shape)} as in training" if limited is not image else ""
    settings, seed = model.settings, model.seed
    choice = ", selection {selection}, budget {budget}".format_map(settings.cutter) if tokenizer.draws else ""
    lines = [
        f"photo      {_show_size(image.shape)} pixels{downscaled}",
        f"fitted     {_show_size([side * tokens.patches.shape[1] for side in tokens.grids[-1]])} pixels",
        f"tokenizer  {settings.name}{choice}",
    ]
    for scale, grid in reversed(list(enumerate(tokens.grids))):
        count = int((tokens.patch_valid & (tokens.scale_id == scale)).sum())
        times = tokens.grids[-1][0] / grid[0] if grid[0] else 0
        kind = f"downscaled {times:.3g} times" if times else "not used"
        kind = "native" if grid == tokens.grids[-1] else "padding" if count > grid[0] * grid[1] else kind
        lines.append(f"scale {scale}    {count} tokens on a grid of {_show_size(grid)}, {kind}")
    if tokenizer.draws:
        lines.append(f"dropped    {_count_dropped(model, limited)} tokens")
    if area := describe_area(model, image):
        lines.append(f"area seen  {area}")
    lines.append(f"padding    {len(tokens.patch_valid) - tokens.seq_len} of {len(tokens.patch_valid)} tokens")
    lines.append(f"drawn by   {pixel_key(limited)}, seed {seed}")
    return lines


def describe_area(model: Preparation, image: np.ndarray) -> str | None:
    """Says how much of uint8 (H, W, 3), at the size at which it is seen, the tokens show; None where it is resized."""
    area = model.tokenizer.area_seen(model.limited_hw(image.shape[:2]))
    return None if area is None else str(area)


def _count_dropped(model: Preparation, limited: np.ndarray) -> int:
    """Returns how many tokens were dropped because they exceeded max_seq_len."""
    cutter = model.tokenizer.cutter((limited.shape[0], limited.shape[1]))
    if cutter is None:
        return 0
    frame = model.tokenizer.frame(limited)
    return max(0, cutter.count_tokens(cutter.layout((frame.shape[0], frame.shape[1]))) - cutter.max_seq_len)


def _show_size(hw: tuple[int, ...] | list[int]) -> str:
    return f"{hw[0]} x {hw[1]}"


def encode_tokens(tokens: Tokens) -> bytes:
    """Returns an .npz file with the arrays of `Tokens`; `grids` is int32 (num_scales, 2)."""
    names = ("patches", "patch_coord", "scale_id", "patch_valid")
    buffer = io.BytesIO()
    np.savez(buffer, **{name: getattr(tokens, name) for name in names}, grids=np.array(tokens.grids, np.int32))
    return buffer.getvalue()


def draw_views(
    model: Preparation, image: np.ndarray, tokens: Tokens, saliency_mask: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Images of what `cut_image` made, by name; uint8 (H, W, 3), all of the fitted size.

        native       the photograph, dark where it is not native, an outline around coarse patches that are
        importance   why: scores per coarse patch from the lowest (dark blue) to the highest (yellow), or the mask
        seen         the photograph rebuilt from its tokens

    Where nothing is selected there is only the last, and where chance alone decides no importance.
    """
    views = {"seen": tokens.to_image()}
    cutter = model.tokenizer.cutter(model.limited_hw(image.shape[:2]))
    if cutter is None:
        return views
    coarse, native = cutter.coarse_patch_size, cutter.num_scales - 1
    fitted = model.tokenizer.frame(model.limit_size(image))
    is_native = _enlarge(mark_cells(tokens, native).astype(np.uint8), fitted.shape) > 0
    shaded = np.where(is_native[..., None], fitted, fitted * ((255 - SHADE) / 255)).astype(np.uint8)
    width = max(1, round(max(fitted.shape) / _LINE_SHARE))
    for y, x in np.argwhere(mark_cells(tokens, native, cutter.sides[-1])) * coarse:
        cv2.rectangle(shaded, (int(x), int(y)), (int(x) + coarse - 1, int(y) + coarse - 1), _MARK, width)
    views["native"] = shaded
    importance = find_importance(model, image, saliency_mask)
    if importance is not None:
        views["importance"] = _enlarge(paint_heat(importance), fitted.shape)
    return views


def find_importance(model: Preparation, image: np.ndarray, saliency_mask: np.ndarray | None) -> np.ndarray | None:
    """Returns the map that native patches of uint8 (H, W, 3) were chosen by, with its saliency mask, bool (H, W).

    Returns:
        Scores of coarse patches, float32 (grid_h, grid_w), or the salient object on the frame, uint8 (H', W') of 0 and
        1. None where nothing was selected, or by chance.
    """
    tokenizer, limited = model.tokenizer, model.limit_size(image)
    image_hw = (limited.shape[0], limited.shape[1])
    cutter = tokenizer.cutter(image_hw)
    if cutter is None:
        return None
    if cutter.selection in IMPORTANCE:
        return IMPORTANCE[cutter.selection](tokenizer.frame(limited), cutter.coarse_patch_size)
    return None if saliency_mask is None else tokenizer.frame(downscale(saliency_mask.astype(np.uint8), image_hw))


def _enlarge(cells: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Enlarges uint8 (h, w) or (h, w, 3) to the size of an image, without mixing colours."""
    return cv2.resize(cells, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST)
