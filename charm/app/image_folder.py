"""The images of a folder for `charm teach`: features and previews, made in the background and kept.

    <out>/features/<digest of all that they are made with>/<sha256 of its own bytes>.npz     of BLOCK images
    <out>/.previews/<key>.jpg

An image's key is the sha256 of its file: one that was renamed keeps its features and stars, one that was changed has
none, and copies are one image. A block that is damaged is made again.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock

import cv2
import numpy as np
import simplejpeg

from charm.app.journal import read_state
from charm.app.reading import find_mask
from charm.app.score import read_ahead
from charm.drawing import JPEG_QUALITY, shrink
from charm.images.decode import decode_image
from charm.images.find import ImageFile, ImageFileReader
from charm.images.limits import LIMITS
from charm.images.reasons import Rejected
from charm.model.frozen import choose_layers, hash_weights, list_parts
from charm.model.vit import CharmViT
from charm.runtime.disk import atomic_write, fingerprint
from charm.runtime.errors import UserError
from charm.scorer import CharmScorer
from charm.tokenization.draws import draw_random_bits
from charm.tokenization.tokens import Tokens

BLOCK = 8  # images: the features that a kill may cost, and what the end waits for
PREVIEW_EDGE = 1024  # pixels
_READERS = 4
_PREVIEW = re.compile(r"[0-9a-f]{32}\.jpg")
State = tuple[str, int, int]  # of a file: its absolute path, size in bytes, time of its last change in ns


@dataclass(frozen=True)
class _Opened:
    """A file that was opened: what it was, the key of its image or the reason against it, and what is new of it."""

    path: str
    state: State
    key: str = ""
    reason: str = ""
    tokens: Sequence[Tokens] = ()


class ImageFolder:
    """Looks at the images of a folder in an order that follows from their names and covers the folder evenly.

    Args:
        scorer: whose frozen backbone the features are of.
        top: the folder.
        image_files: that were found in it.
        out: where features and previews are kept.

    Attributes:
        files: the images in their order.
        paths: key -> paths of the images whose preview is there.
        values: key -> features, float32 (layers, parts, D), of those that have them.
        reasons: path -> reason of the images that cannot be used.
        done: how many files have features or a reason.
        layers, parts: of the features.

    Raises:
        UserError: the scorer's model has no layers to read.
    """

    def __init__(self, scorer: CharmScorer, top: str, image_files: Sequence[ImageFile], out: Path) -> None:
        if not isinstance(scorer.model, CharmViT):
            problem = "has no tokens that could be pooled layer by layer: expected a plain vision transformer"
            raise UserError(f"{scorer.config.model.backbone} {problem}")
        self._scorer, self._top = scorer, top
        self._previews = out / ".previews"  # hidden, or they would be found as photographs where `out` is below `top`
        self.layers, self.parts = choose_layers(scorer.model.num_layers - 2), list_parts(scorer.model)
        made_with = fingerprint(scorer.config.to_json(), scorer.max_edge, hash_weights(scorer.model), self.layers)
        self._kept = out / "features" / made_with[:16]
        for folder in (self._kept, self._previews):
            folder.mkdir(parents=True, exist_ok=True)
        self.files = sorted(
            image_files, key=lambda one: int(draw_random_bits(0, 0, self.name(one.path), "teach", 1)[0])
        )
        self._place = {one.path: place for place, one in enumerate(self.files)}
        self._lock = Lock()
        self.paths: dict[str, list[str]] = {}
        self.values: dict[str, np.ndarray] = {}
        self.reasons: dict[str, str] = {}
        self.done = 0

    def name(self, path: str) -> str:
        """Returns an image's path below the folder."""
        return os.path.relpath(path, self._top)

    def preview(self, key: str) -> Path:
        """Returns the path of an image's preview, a JPEG file of at most PREVIEW_EDGE pixels an edge."""
        return self._previews / f"{key}.jpg"

    def place(self, key: str) -> int:
        """Returns where an image stands in the order of the files."""
        return self._place[self.paths[key][0]]

    def look(self, stop: Event, tell: Callable[[], None]) -> None:
        """Makes the features and previews that are missing, until `stop` is set; `tell` is called after each block."""
        states, kept = self._read_blocks()
        left = []
        for one in self.files:
            key = states.get(_describe(one), "")
            if key and self.preview(key).exists():
                self._show(key, one.path)
                self.values[key] = kept[key]
                self.done += 1
            else:
                left.append(one)
        tell()
        cv2.setNumThreads(1)  # one per reader, beside those of the model
        workers = 1 if self._scorer.needs_mask else min(_READERS, max(1, (os.cpu_count() or 1) // 2))
        groups = [left[start : start + BLOCK] for start in range(0, len(left), BLOCK)]
        pool = ThreadPoolExecutor(workers, "photographs")
        with closing(ImageFileReader(LIMITS)) as reader:
            try:
                for _, opened in read_ahead(pool, lambda one: self._open(one, reader, kept), groups):
                    self._keep(opened, kept)
                    tell()
                    if stop.is_set():
                        return
            finally:
                pool.shutdown(cancel_futures=True)
        for path in self._previews.iterdir():  # of images that are gone, and none of anybody's own files
            if _PREVIEW.fullmatch(path.name) and path.stem not in self.paths:
                path.unlink()

    def _open(self, one: ImageFile, reader: ImageFileReader, kept: dict[str, np.ndarray]) -> _Opened:
        opened = _Opened(one.path, _describe(one))  # before the bytes: a change after this is noticed
        try:
            data = reader.read(one)
            key = hashlib.sha256(data).hexdigest()[:32]
            pixels = decode_image(data, reader.limits, self._scorer.colour).pixels
            if not self.preview(key).exists():
                small = np.ascontiguousarray(shrink(pixels, PREVIEW_EDGE))
                with atomic_write(self.preview(key)) as file:
                    file.write(simplejpeg.encode_jpeg(small, quality=JPEG_QUALITY, colorsubsampling="420"))
            tokens = () if key in kept else self._scorer.tokenize(pixels, find_mask(self._scorer, pixels))
        except Rejected as error:
            return replace(opened, reason=error.reason)
        except MemoryError:
            return replace(opened, reason="memory")
        self._show(key, one.path)
        return replace(opened, key=key, tokens=tokens)

    def _show(self, key: str, path: str) -> None:
        with self._lock:
            self.paths[key] = [*self.paths.get(key, ()), path]

    def _keep(self, opened: Sequence[_Opened], kept: dict[str, np.ndarray]) -> None:
        """Makes the features of a block of images, and keeps them."""
        self.reasons |= {one.path: one.reason for one in opened if one.reason}
        new = {one.key: one.tokens for one in opened if one.tokens and one.key not in kept}
        if new:
            kept |= zip(new, self._scorer.read_layers(list(new.values()), self.layers), strict=True)
        good = [one for one in opened if one.key]
        if good:
            rows = json.dumps([(*one.state, one.key) for one in good]).encode()
            block = io.BytesIO()
            np.savez(block, rows=np.frombuffer(rows, np.uint8), values=np.stack([kept[one.key] for one in good]))
            with atomic_write(self._kept / f"{hashlib.sha256(block.getvalue()).hexdigest()}.npz") as file:
                file.write(block.getvalue())
        self.values |= {one.key: kept[one.key] for one in good}
        self.done += len(opened)

    def _read_blocks(self) -> tuple[dict[State, str], dict[str, np.ndarray]]:
        """Reads the kept features: state of a file -> key, and key -> features."""
        states: dict[State, str] = {}
        kept: dict[str, np.ndarray] = {}
        for path in sorted(self._kept.glob("*.npz")):
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != path.stem:
                path.unlink()
                continue
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                rows, values = json.loads(arrays["rows"].tobytes()), arrays["values"]
            for (place, size, time, key), value in zip(rows, values, strict=True):
                states[place, size, time], kept[key] = key, value
        return states, kept


def _describe(one: ImageFile) -> State:
    return one.place, *(read_state(one) or (-1, -1))
