"""The built-in data set: photographs blurred or made noisy to a known degree. No download."""

import simplejpeg

from charm.runtime.disk import atomic_write
from pipeline.datasets.demo_images import render_images, split_sources
from pipeline.manifest.labels import Listed, Listing, Source
from pipeline.settings.recipes import DATASETS


def read(source: Source) -> Listing:
    """Renders the images into the folder `rendered`; the seed decides which photographs are held out."""
    rendered = source.rendered
    rendered.mkdir(parents=True, exist_ok=True)
    splits = split_sources(source.seed)
    listed: list[Listed] = []
    for image in render_images():
        name = f"{image.name}.jpg"
        with atomic_write(rendered / name) as file:
            file.write(simplejpeg.encode_jpeg(image.image, quality=95, colorsubsampling="444"))
        where = f"demo:{len(listed) + 1}"
        listed.append(Listed(name, name, (image.score,), splits[image.source], where, image.source))
    recipe = DATASETS["demo"]
    return Listing(rendered, listed, recipe.score_range, recipe.accuracy_threshold, recipe.meaning)
