"""The built-in images: photographs that need no download, cut, then blurred or made noisy to a known degree.

The score is 1 - degree, so the right answer is known, and it lies in detail of a pixel or two, which downscaling
destroys. The photographs come with scikit-image (licences as in the docstrings of `skimage.data`) and scikit-learn
(`sklearn/datasets/images/README.txt`):

    astronaut           Eileen Collins. NASA Great Images; no known copyright restrictions, public domain.
    hubble_deep_field   Hubble eXtreme Deep Field. NASA, HubbleSite; may be freely used in the public domain.
    chelsea             Stefan van der Walt; CC0.
    china               danielbuechele, flickr.com/photos/danielbuechele/6061409035; CC BY 2.0.
    rocket              DSCOVR on Falcon 9. SpaceX Photos; released in the public domain.
    coffee              Rachel Michetti, courtesy of Pikolo Espresso Bar; CC0.
    flower              vultilion, flickr.com/photos/vultilion/6056698931; CC BY 2.0.

CC BY 2.0: creativecommons.org/licenses/by/2.0. The images made here are changed as described above.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import skimage.data
import sklearn.datasets

# In the order in which they are held out. Their number is odd, so that steps of two give each source every place.
SOURCES: tuple[str, ...] = ("astronaut", "hubble_deep_field", "chelsea", "china", "rocket", "coffee", "flower")
_OF_SKLEARN = ("china", "flower")  # the others come with scikit-image
IMAGES_PER_SOURCE = 86
NUM_IMAGES: int = IMAGES_PER_SOURCE * len(SOURCES)

_AREA = (0.04e6, 0.5e6)  # pixels, log-uniform
_MAX_ASPECT = 3.0  # width / height is log-uniform from 1 / 3 to 3
_LARGE_AREA = 1.1e6  # pixels, of two images of each source
_TINY_SIDE = (20, 60)  # pixels, of two images of each source: below a coarse patch of 28, or one or two of them
_ODD_SIZE_EVERY = 43  # cuts of a source between one large or tiny image and the next
_CANDIDATES = 4  # cuts drawn per image; see _cut
_BLUR = (0.3, 1.6)  # pixels, standard deviation at degree 0 (changes nothing) and 1
_NOISE = (0.0, 12.0)  # grey levels, standard deviation at degree 0 and 1


@dataclass(frozen=True)
class DemoImage:
    """One image with its known answer."""

    name: str  # unique, of letters, digits and underscores
    image: np.ndarray  # uint8 (H, W, 3), RGB, not yet encoded
    score: float  # 1 - degree of the distortion, in (0, 1]; 1 = as the photograph is
    source: str  # the photograph, one of SOURCES


def render_images() -> Iterator[DemoImage]:
    """Yields NUM_IMAGES images, the sources taking turns; each is a function of its index alone."""
    image_files = _load_photographs()
    for index in range(NUM_IMAGES):
        source = SOURCES[index % len(SOURCES)]
        draws = np.random.Generator(np.random.Philox(key=index))
        image = _cut(image_files[source], _draw_size(index // len(SOURCES), draws), draws)
        degree = float(draws.random())
        yield DemoImage(f"{source}_{index:03d}", _distort(image, degree, draws), 1 - degree, source)


def split_sources(seed: int) -> dict[str, str]:
    """Returns source -> "train", "val" or "test": two sources for test and one for validation, as the seed decides.

    No photograph is in two splits: a model cannot know a score from having seen the scene. Seven seeds in a row test
    each source twice and validate on each once.
    """
    first = 2 * seed % len(SOURCES)
    turned = SOURCES[first:] + SOURCES[:first]
    return {source: "test" if place < 2 else "val" if place < 3 else "train" for place, source in enumerate(turned)}


def _load_photographs() -> dict[str, np.ndarray]:
    """Loads the photographs: source -> uint8 (H, W, 3), RGB."""
    of_sklearn = {name: sklearn.datasets.load_sample_image(f"{name}.jpg") for name in _OF_SKLEARN}
    return {name: of_sklearn[name] if name in of_sklearn else getattr(skimage.data, name)() for name in SOURCES}


def _draw_size(count: int, draws: np.random.Generator) -> tuple[int, int]:
    """Draws (height, width), in pixels, of the cut number `count` of its source."""
    if count % _ODD_SIZE_EVERY == 1:
        height, width = draws.integers(*_TINY_SIDE, size=2)
        return int(height), int(width)
    area = _LARGE_AREA if count % _ODD_SIZE_EVERY == 0 else math.exp(draws.uniform(*np.log(_AREA)))
    aspect = _MAX_ASPECT ** draws.uniform(-1, 1)
    return round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))


def _cut(image_file: np.ndarray, image_hw: tuple[int, int], draws: np.random.Generator) -> np.ndarray:
    """Cuts a part of this size out of a photograph: of a few drawn at random, the one with the most detail.

    Where the photograph is smooth (a clear sky, a background out of focus), blur leaves no trace and the answer could
    not be known. A photograph that is too small is continued by its mirror image; enlarging it would blur it.
    """
    height, width = image_hw
    missing = ((0, max(0, height - image_file.shape[0])), (0, max(0, width - image_file.shape[1])), (0, 0))
    canvas = np.pad(image_file, missing, mode="reflect")
    detail = np.abs(cv2.Laplacian(cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY), cv2.CV_16S))
    tops = draws.integers(canvas.shape[0] - height, endpoint=True, size=_CANDIDATES)
    lefts = draws.integers(canvas.shape[1] - width, endpoint=True, size=_CANDIDATES)
    cuts = [np.s_[top : top + height, left : left + width] for top, left in zip(tops, lefts, strict=True)]
    return np.ascontiguousarray(canvas[max(cuts, key=lambda cut: int(detail[cut].sum(dtype=np.int64)))])


def _distort(image: np.ndarray, degree: float, draws: np.random.Generator) -> np.ndarray:
    """Blurs the image or adds noise to it, equally often."""
    if draws.random() < 0.5:
        blurred: np.ndarray = cv2.GaussianBlur(image, (0, 0), _BLUR[0] + degree * (_BLUR[1] - _BLUR[0]))
        return blurred
    noise = draws.standard_normal(image.shape, dtype=np.float32)
    noisy: np.ndarray = image + noise * np.float32(_NOISE[0] + degree * (_NOISE[1] - _NOISE[0]))
    return noisy.round().clip(0, 255).astype(np.uint8)
