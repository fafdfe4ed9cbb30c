"""Figures of images: masks, selected patches, augmentations and inputs, on images of the data set at hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from charm.drawing import UNITS, mark_cells, trace_cells
from charm.inputs.muller import MullerInput, measure_bands
from charm.inputs.registry import build_input
from charm.runtime.errors import UserError
from charm.saliency.mbd import detect
from charm.tokenization.augment import Symmetry, apply_symmetry, to_grey
from charm.tokenization.draws import pixel_key
from charm.tokenization.importance import IMPORTANCE
from charm.tokenization.selection import SELECTIONS
from charm.tokenization.settings import Selection
from charm.tokenization.tokenizer import CharmTokenizer
from pipeline.figures.draw import Panel
from pipeline.manifest.table import Manifest, read_manifest
from pipeline.report.contact_sheet import dim
from pipeline.report.gallery import Scored, choose_images
from pipeline.settings.inputs import build_cutter
from pipeline.settings.params import Params
from pipeline.shards.columns import ColumnReader
from pipeline.shards.read import ShardReader

PATCH_SIZE = 14  # pixels, of the paper's DINOv2-small
NUM_IMAGES = 3
MAX_SEARCHED = 300  # images in which a failure of saliency is looked for
THRESHOLDS = (1.0, 1.5, 2.0, 4.0)
PADDED = ("standard", "padding")  # inputs of figure 15
AUGMENTATIONS = {
    "HF": (Symmetry(flip=True), False),
    "R": (Symmetry(turns=1), False),
    "G": (Symmetry(), True),
    "HF + R": (Symmetry(flip=True, turns=1), False),
    "HF + R + G": (Symmetry(flip=True, turns=1), True),
}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in 0..1: what DINOv2 was trained with

Images = dict[str, np.ndarray]  # name -> uint8 (H, W, 3)


@dataclass(frozen=True)
class Gallery:
    """The images that are drawn.

    Attributes:
        images: a few of the test split, at evenly spaced ranks of their scores.
        cutter: as params.yaml describes it.
        find_mask: finds the salient object of an image, from its name.
        all_names: of the images in which a failure may be looked for.
    """

    images: Images
    cutter: CharmTokenizer
    params: Params
    find_mask: Callable[[str], np.ndarray]
    read: Callable[[str], np.ndarray]
    all_names: Sequence[str]

    def settings(self, name: str) -> Any:
        """Returns the block of an input in params.yaml."""
        return getattr(self.params.inputs, name)


def command_for(dataset: str, stage: str) -> str:
    """Returns the command that makes a stage's output of a data set in this folder."""
    return f"uv run dvc exp run -S dataset={dataset} {stage}"


def open_manifest(params: Params, dataset: str | None, stage: str) -> Manifest:
    """Reads the manifest of this folder.

    Raises:
        UserError: there is none, or it is of another data set; with the command that makes it.
    """
    wanted = dataset or params.dataset
    if not Path("data/manifest/dataset.json").is_file() or not Path("data", stage).is_dir():
        raise UserError(f"data/{stage} is missing: {command_for(wanted, stage)}")
    manifest = read_manifest(Path("data/manifest"))
    if manifest.facts.dataset != wanted:
        raise UserError(f"data/ holds {manifest.facts.dataset}, not {wanted}: {command_for(wanted, stage)}")
    return manifest


def open_gallery(params: Params, dataset: str | None) -> Gallery:
    """Chooses images of the data set whose shards are in this folder."""
    manifest = open_manifest(params, dataset, "shards")
    cutter = build_cutter(params, PATCH_SIZE)
    test = manifest.of_split("test")
    scores = (test.targets @ test.unit_bins).tolist()
    scored = [Scored(*row, row[-1]) for row in zip(test.keys, test.table["name"].to_pylist(), scores, strict=True)]
    chosen = choose_images(scored, test.image_hws, cutter, NUM_IMAGES)
    shards = ShardReader(Path("data/shards"))
    keys = dict(zip(manifest.table["name"].to_pylist(), manifest.keys, strict=True))

    def read(name: str) -> np.ndarray:
        return shards.read_image(keys[name])

    def find_mask(name: str) -> np.ndarray:
        return detect(read(name)) if column is None else column.read_mask(keys[name])

    column: ColumnReader | None = None
    if Path("data/importance/column.json").is_file():
        try:
            column = ColumnReader(Path("data/importance"), shards, "saliency")
        except UserError:  # it holds another map
            column = None
    images = {row.name: read(row.name) for row in chosen}
    return Gallery(images, cutter, params, find_mask, read, list(keys)[:MAX_SEARCHED])


def show_masks(gallery: Gallery) -> list[Panel]:
    """Shows saliency masks, and an image in which nothing stands out, if there is one."""
    panels = []
    empty = next((name for name in gallery.all_names if not gallery.find_mask(name).any()), None)
    shown = gallery.images | ({empty: gallery.read(empty)} if empty is not None else {})
    for name, image in shown.items():
        mask = gallery.find_mask(name)
        panels.append(Panel(name, "image", image))
        seen = dim(image, mask) if mask.any() else np.zeros_like(image)
        panels.append(Panel(name, "salient object", seen, facts={"coverage": float(mask.mean())}))
    return panels


def show_selections(gallery: Gallery) -> list[Panel]:
    """Outlines the coarse patches that each strategy keeps native without randomness (t = 1)."""
    panels = []
    for name, image in gallery.images.items():
        panels.append(Panel(name, "image", gallery.cutter.frame(image)))
        panels += [_select(gallery, name, name, selection, selection, 1.0) for selection in SELECTIONS]
    return panels


def show_thresholds(gallery: Gallery) -> list[Panel]:
    """Outlines what the maps keep of one image in the first epoch, for several thresholds t."""
    name = next(iter(gallery.images))
    return [
        _select(gallery, name, map_, f"t = {t:g}", map_, t) for map_ in SELECTIONS if map_ in UNITS for t in THRESHOLDS
    ]


def _select(gallery: Gallery, name: str, row: str, column: str, selection: Selection, threshold: float) -> Panel:
    """Cuts an image; `overlap`: share of the patches of the first epoch that the second has, too."""
    image = gallery.images[name]
    cutter = replace(gallery.cutter, selection=selection, threshold=threshold)
    frame, side = cutter.frame(image), cutter.coarse_patch_size
    importance = IMPORTANCE[selection](frame, side) if selection in UNITS else None
    mask = cutter.frame(gallery.find_mask(name).astype(np.uint8)).astype(bool)
    marked = []
    maps: dict[str, Any] = {"importance": importance, "saliency_mask": mask}
    for epoch in (0, 1):
        tokens = cutter(frame, seed=gallery.params.seed, epoch=epoch, key=pixel_key(image), **maps)
        marked.append(mark_cells(tokens, cutter.num_scales - 1, cutter.sides[-1]))
    overlap = float((marked[0] & marked[1]).sum() / max(1, marked[0].sum()))
    facts = {"native_patches": int(marked[0].sum()), "overlap": overlap}
    return Panel(row, column, frame, trace_cells(marked[0], side), facts)


def show_normalization(gallery: Gallery) -> list[Panel]:
    """Shows what normalization makes of an image; `clipped`: share of the values beyond what can be shown."""
    panels = []
    for name, image in gallery.images.items():
        normalized = (image / 255 - _MEAN) / _STD
        clipped = float(((normalized < 0) | (normalized > 1)).mean())
        shown = _to_bytes(normalized)
        panels += [Panel(name, "image", image), Panel(name, "normalized", shown, facts={"clipped": clipped})]
    return panels


def show_augmentations(gallery: Gallery) -> list[Panel]:
    """Shows an image flipped, turned and grey."""
    panels = []
    for name, image in gallery.images.items():
        panels.append(Panel(name, "image", image))
        for label, (symmetry, is_grey) in AUGMENTATIONS.items():
            turned = apply_symmetry(to_grey(image) if is_grey else image, symmetry)
            panels.append(Panel(name, label, turned, facts={"turns": symmetry.turns, "grey": is_grey}))
    return panels


def show_muller(gallery: Gallery) -> list[Panel]:
    """Shows an image downscaled by bilinear interpolation, and by Muller with its published numbers."""
    settings = replace(gallery.settings("muller"), start="published")
    scales, biases = settings.resizer_start
    resizer, panels = MullerInput(PATCH_SIZE, settings), []
    for name, image in gallery.images.items():
        plain = resizer.frame(image)
        bands = measure_bands(image, plain.shape[:2], settings.border)
        detail = [np.tanh(a * band + b) for a, b, band in zip(scales, biases, bands, strict=True)]
        resized = plain / 255 + np.sum(detail, axis=0)
        change, outside = float(np.std(resized - plain / 255)), float(((resized < 0) | (resized > 1)).mean())
        panels += [Panel(name, "image", image), Panel(name, "bilinear", plain)]
        panels.append(Panel(name, "Muller", _to_bytes(resized), facts={"rms_change": change, "outside": outside}))
    return panels


def show_padding(gallery: Gallery) -> list[Panel]:
    """Shows the standard and the padded input of an image; `black`: share of black pixels."""
    panels = []
    for name, image in gallery.images.items():
        panels.append(Panel(name, "image", image))
        for kind in PADDED:
            settings = gallery.settings(kind)
            roomy = replace(gallery.cutter, max_seq_len=settings.length(PATCH_SIZE))
            frame = build_input(kind, settings, roomy).frame(image)
            black = float((frame == 0).all(axis=-1).mean())
            panels.append(Panel(name, kind, frame, facts={"tokens": settings.length(PATCH_SIZE), "black": black}))
    return panels


def _to_bytes(unit_values: np.ndarray) -> np.ndarray:
    """Clips (H, W, 3) to 0..1; returns it as uint8."""
    return np.asarray(np.rint(255 * unit_values.clip(0, 1)), np.uint8)
