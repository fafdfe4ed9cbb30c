"""A photograph as a model's tokenizer sees it, in numbers, arrays and images: the commands `tokenize` and `show`."""

import io
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from charm.app.reading import find_mask, load_preparation
from charm.drawing import SHADE, encode_png, mark_cells, paint_heat
from charm.images import find
from charm.inputs.preparation import Preparation
from charm.runtime.disk import atomic_write
from charm.runtime.errors import UserError
from charm.tokenization.draws import pixel_key
from charm.tokenization.geometry import downscale
from charm.tokenization.importance import IMPORTANCE
from charm.tokenization.selection import SELECTIONS
from charm.tokenization.tokens import ARRAYS, Tokens

VIEWS = ("native", "importance", "seen")  # what `draw_views` may give
_MARK = (255, 212, 59)  # RGB, as in the report
_LINE_SHARE = 500  # an outline is one pixel wide for so many of the longest edge


def show_photo(photo: str, model: str | None, selection: str | None, folder: Path) -> None:
    """Writes the images of VIEWS that there are of a photograph, and prints what its tokens are.

    Raises UserError if the model, the photograph or the selection is not as it has to be.
    """
    seen_by = load_preparation(model)
    if selection is not None:
        seen_by = change_selection(seen_by, selection)
    image = find.read_image(photo, seen_by.colour)
    tokens, mask = cut_image(seen_by, image)
    folder.mkdir(parents=True, exist_ok=True)
    views = draw_views(seen_by, image, tokens, mask)
    for name in VIEWS:
        if name not in views:
            (folder / f"{name}.png").unlink(missing_ok=True)  # of another photo or selection
            continue
        with atomic_write(folder / f"{name}.png") as file:
            file.write(encode_png(views[name]))
    print(*describe_tokens(seen_by, image, tokens), sep="\n")
    print(f"written to {find.escape_path(str(folder))}: {', '.join(views)}")


def tokenize_photo(photo: str, model: str | None, out: Path | None) -> None:
    """Prints what the tokens of a photograph are, and writes their arrays, an .npz file, if `out` says where."""
    seen_by = load_preparation(model)
    image = find.read_image(photo, seen_by.colour)
    tokens, _ = cut_image(seen_by, image)
    print(*describe_tokens(seen_by, image, tokens), sep="\n")
    if out is not None:
        with atomic_write(out) as file:
            file.write(encode_tokens(tokens))


def change_selection(model: Preparation, selection: str) -> Preparation:
    """Returns what a model sees if its patches are chosen otherwise than in training.

    Raises UserError if the selection is unknown, or the model's tokenizer selects nothing.
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
    buffer = io.BytesIO()
    np.savez(buffer, **{name: getattr(tokens, name) for name in ARRAYS}, grids=np.array(tokens.grids, np.int32))
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
