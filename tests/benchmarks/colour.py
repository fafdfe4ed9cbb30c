"""Measures what reading colours by their profile costs, and what taking Display P3 for sRGB would change.

    python -m tests.benchmarks.colour [--model runs/evaluate/model]

Times are of `decode_image`, medians in ms on one thread, interleaved, beside plain simplejpeg. The effect is of bundled
photographs as a phone stores them, in Display P3, read `as_is` and as `srgb`: distance of the pixels, agreement of the
importance maps, and how many of the quarter of patches with the highest importance stay. With a model that was trained
on the built-in data, also what it says of that data's test images (data/manifest) as files in Display P3.
"""

import argparse
import io
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import skimage.data
from PIL import Image, ImageCms
from sklearn.datasets import load_sample_image

from charm import CharmScorer, score_patches
from charm.images.decode import decode_image
from charm.model.metrics import mae, plcc, srcc
from charm.tokenization.importance import IMPORTANCE
from pipeline.manifest.table import read_manifest
from tests.benchmarks.timing import take_turns
from tests.charm.images.files import encode
from tests.charm.images.test_colour import LCMS_SRGB, P3

ROUNDS = 40


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    if model := parser.parse_args().model:
        score(model)
        return
    cv2.setNumThreads(1)
    photographs = [load_sample_image("china.jpg"), load_sample_image("flower.jpg")]
    photographs += [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()]
    large = np.asarray(Image.fromarray(photographs[0]).resize((1024, 768)))
    jpegs = {
        "untagged": encode(large, "JPEG", quality=92),
        "sRGB": encode(large, "JPEG", quality=92, icc_profile=LCMS_SRGB),
        "Display P3": encode(large, "JPEG", quality=92, icc_profile=P3),
    }
    runs = {"simplejpeg": lambda: simplejpeg.decode_jpeg(jpegs["untagged"], strict=True)}
    runs |= {name: lambda data=data: decode_image(data) for name, data in jpegs.items()}  # type: ignore[misc]
    times = take_turns(runs, ROUNDS)
    print("1024 x 768, ms:", ", ".join(f"{name} {1000 * seconds:.2f}" for name, seconds in times.items()))

    away: list[float] = []
    agreement: dict[str, list[float]] = {name: [] for name in IMPORTANCE}
    kept: dict[str, list[float]] = {name: [] for name in IMPORTANCE}
    for image in photographs:
        stored = encode(to_p3(image), "PNG", icc_profile=P3)
        converted, as_is = decode_image(stored).pixels, decode_image(stored, colour="as_is").pixels
        away.append(float(np.abs(converted.astype(int) - as_is).mean()))
        for name in IMPORTANCE:
            one, other = (score_patches(pixels, name, 28).ravel() for pixels in (converted, as_is))
            agreement[name].append(srcc(one, other) or 0.0)
            top = [set(np.argsort(scores)[-len(scores) // 4 :]) for scores in (one, other)]
            kept[name].append(len(top[0] & top[1]) / len(top[0]))
    print(f"pixels differ by {np.mean(away):.1f} of 255 on average, {max(away):.1f} in the most colourful image")
    for name in IMPORTANCE:
        print(f"{name}: SRCC {min(agreement[name]):.3f} or more, {np.mean(kept[name]):.0%} of the top quarter stay")


def score(model: str) -> None:
    """Prints what a model says of the test images in Display P3, converted and not, beside the images as they are."""
    manifest = read_manifest(Path("data/manifest")).of_split("test")
    scorer = CharmScorer.from_pretrained(model)
    images = [
        decode_image((Path(manifest.facts.root) / path).read_bytes()).pixels
        for path in manifest.table["path"].to_pylist()
    ]
    stored = [encode(to_p3(image), "JPEG", quality=95, subsampling=0, icc_profile=P3) for image in images]
    read = {"sRGB": images}
    read |= {
        f"Display P3, {colour}": [decode_image(one, colour=colour).pixels for one in stored]
        for colour in ("srgb", "as_is")
    }
    read["encoded again"] = [decode_image(encode(image, "JPEG", quality=95, subsampling=0)).pixels for image in images]
    scores = {name: np.array([found.score for found in scorer(pixels)]) for name, pixels in read.items()}
    targets = manifest.targets[:, 0]
    for name, found in scores.items():
        away = np.abs(found - scores["sRGB"])
        told = f"SRCC {srcc(found, targets):.3f}, PLCC {plcc(found, targets):.3f}, MAE {mae(found, targets):.4f}"
        print(f"{name}: {told}; from sRGB {away.mean():.4f} on average, {away.max():.3f} at most")
    print(f"{len(images)} images")


def to_p3(image: np.ndarray) -> np.ndarray:
    """The pixels of an sRGB image in Display P3, as littleCMS makes them."""
    p3 = ImageCms.ImageCmsProfile(io.BytesIO(P3))
    return np.asarray(ImageCms.profileToProfile(Image.fromarray(image), ImageCms.createProfile("sRGB"), p3))


if __name__ == "__main__":
    main()
