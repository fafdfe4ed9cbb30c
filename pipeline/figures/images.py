"""Figures of images: masks, selected patches, augmentations and inputs, on images of the data set at hand."""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from charm.drawing import UNITS, mark_cells, trace_cells
from charm.inputs.muller import MullerInput, measure_bands
from charm.inputs.registry import build_input
from charm.runtime.errors import UserError, escape_controls
from charm.saliency.mbd import detect
from charm.tokenization.augment import Symmetry, apply_symmetry, to_grey
from charm.tokenization.draws import pixel_key
from charm.tokenization.importance import IMPORTANCE
from charm.tokenization.selection import SELECTIONS
from charm.tokenization.settings import Selection
from charm.tokenization.tokenizer import CharmTokenizer
from pipeline.experiments.run import default_labels
from pipeline.figures.draw import Panel
from pipeline.manifest.table import Manifest, read_manifest
from pipeline.report.gallery import Scored, choose_images, dim
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


@dataclass(frozen=True)
class Gallery:
    """The images of the data set at hand."""

    params: Params  # of the run
    cutter: CharmTokenizer  # as params.yaml describes it
    names: dict[str, str]  # of all images, by key
    chosen: list[str]  # keys of those that are shown, of the test split, at evenly spaced ranks of their scores
    shards: ShardReader  # all images
    # their salient objects, if data/importance has them; else they are found without weights
    masks: ColumnReader | None

    @property
    def inputs(self) -> Any:
        return self.params.inputs

    def read(self, key: str) -> np.ndarray:
        return self.shards.read_image(key)

    def find_mask(self, key: str) -> np.ndarray:
        return detect(self.read(key)) if self.masks is None else self.masks.read_mask(key)


def command_for(dataset: str, stage: str) -> str:
    """Returns the command that makes a stage's output of a data set in this folder."""
    labels = "".join(f" -S labels={path}" for path in default_labels(dataset).values())
    return f"uv run dvc exp run -S dataset={dataset}{labels} {stage}"


def open_manifest(params: Params, dataset: str | None, stage: str) -> Manifest:
    """Reads the manifest of a data set here; if there is none, raises UserError with the command that makes it."""
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
    cutter, test, shards = build_cutter(params, PATCH_SIZE), manifest.of_split("test"), ShardReader(Path("data/shards"))
    scores = (test.targets @ test.unit_bins).tolist()
    scored = [Scored(key, "", score, score, score) for key, score in zip(test.keys, scores, strict=True)]
    scenes = [group or key for key, group in zip(test.keys, test.table["group"].to_pylist(), strict=True)]
    chosen = [row.key for row in choose_images(scored, test.image_hws, scenes, cutter, NUM_IMAGES)]
    names = dict(zip(manifest.keys, map(escape_controls, manifest.table["name"].to_pylist()), strict=True))
    masks = None
    with contextlib.suppress(UserError):  # there is no map, or another one
        masks = ColumnReader(Path("data/importance"), shards, "saliency")
    return Gallery(params, cutter, names, chosen, shards, masks)


def find_failure(gallery: Gallery) -> list[str]:
    """Finds an image in which nothing stands out, among the first ones; none if there is none."""
    keys = list(gallery.names)[:MAX_SEARCHED]
    return [key for key in keys if key not in gallery.chosen and not gallery.find_mask(key).any()][:1]


def show_mask(gallery: Gallery, key: str) -> list[Panel]:
    """Shows the salient object of an image; none is black."""
    image, mask = gallery.read(key), gallery.find_mask(key)
    seen = dim(image, mask) if mask.any() else np.zeros_like(image)
    return [Panel("image", image), Panel("salient object", seen, facts={"coverage": float(mask.mean())})]


def show_selections(gallery: Gallery, key: str) -> list[Panel]:
    """Outlines the coarse patches that each strategy keeps native without randomness (t = 1)."""
    image = Panel("image", gallery.cutter.frame(gallery.read(key)))
    return [image, *(_select(gallery, key, selection, selection, 1.0) for selection in SELECTIONS)]


def show_thresholds(gallery: Gallery, key: str) -> list[Panel]:
    """Outlines what each map keeps in the first epoch, for several thresholds t; a row for each map."""
    maps = [selection for selection in SELECTIONS if selection in UNITS]
    return [replace(_select(gallery, key, f"t = {t:g}", one, t), row=one) for one in maps for t in THRESHOLDS]


def _select(gallery: Gallery, key: str, column: str, selection: Selection, threshold: float) -> Panel:
    """Cuts an image; `overlap`: share of the patches of the first epoch that the second has, too."""
    image = gallery.read(key)
    cutter = replace(gallery.cutter, selection=selection, threshold=threshold)
    frame, side = cutter.frame(image), cutter.coarse_patch_size
    mask = cutter.frame(gallery.find_mask(key).astype(np.uint8)).astype(bool)
    maps: dict[str, Any] = {"importance": IMPORTANCE[selection](frame, side) if selection in UNITS else None}
    marked = []
    for epoch in (0, 1):
        tokens = cutter(frame, saliency_mask=mask, seed=gallery.params.seed, epoch=epoch, key=pixel_key(image), **maps)
        marked.append(mark_cells(tokens, cutter.num_scales - 1, cutter.sides[-1]))
    overlap = float((marked[0] & marked[1]).sum() / max(1, marked[0].sum()))
    facts = {"native_patches": int(marked[0].sum()), "overlap": overlap}
    return Panel(column, frame, trace_cells(marked[0], side), facts)


def show_normalization(gallery: Gallery, key: str) -> list[Panel]:
    """Shows what normalization makes of an image."""
    image = gallery.read(key)
    return [Panel("image", image), _show_values("normalized", (image / 255 - _MEAN) / _STD)]


def show_augmentations(gallery: Gallery, key: str) -> list[Panel]:
    """Shows an image flipped, turned and grey."""
    image = gallery.read(key)
    panels = [Panel("image", image)]
    for label, (symmetry, is_grey) in AUGMENTATIONS.items():
        turned = apply_symmetry(to_grey(image) if is_grey else image, symmetry)
        facts = {"flip": symmetry.flip, "turns": symmetry.turns, "grey": is_grey}
        panels.append(Panel(label, turned, facts=facts))
    return panels


def show_muller(gallery: Gallery, key: str) -> list[Panel]:
    """Shows an image downscaled by bilinear interpolation, and by Muller with its published numbers."""
    image, settings = gallery.read(key), replace(gallery.inputs.muller, start="published")
    plain = MullerInput(PATCH_SIZE, settings).frame(image)
    bands = measure_bands(image, plain.shape[:2], settings.border)
    detail = [np.tanh(a * band + b) for a, b, band in zip(*settings.resizer_start, bands, strict=True)]
    return [Panel("image", image), Panel("bilinear", plain), _show_values("Muller", plain / 255 + sum(detail))]


def show_padding(gallery: Gallery, key: str) -> list[Panel]:
    """Shows the standard and the padded input of an image; `black`: share of black pixels."""
    image = gallery.read(key)
    panels = [Panel("image", image)]
    for kind in PADDED:
        settings = getattr(gallery.inputs, kind)
        length = settings.length(PATCH_SIZE)
        frame = build_input(kind, settings, replace(gallery.cutter, max_seq_len=length)).frame(image)
        black = float((frame == 0).all(axis=-1).mean())
        panels.append(Panel(kind, frame, facts={"tokens": length, "black": black}))
    return panels


def _show_values(column: str, unit_values: np.ndarray) -> Panel:
    """Shows values (H, W, 3), of which 0..1 can be shown; `clipped`: share of the others."""
    clipped = float(((unit_values < 0) | (unit_values > 1)).mean())
    return Panel(column, np.asarray(np.rint(255 * unit_values.clip(0, 1)), np.uint8), facts={"clipped": clipped})
