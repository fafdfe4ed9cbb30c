"""The built-in data set: photographs blurred or made noisy to a known degree. No download."""

import simplejpeg

from charm.runtime.disk import atomic_write
from pipeline.datasets.demo_images import render_images, split_sources
from pipeline.manifest.labels import Listed, Listing, Source


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
        listed.append(Listed(name, name, (image.score,), splits[image.source], f"demo:{len(listed) + 1}"))
    return Listing(rendered, listed, (0.0, 1.0), 0.5, "how little it is blurred or noisy, which nobody judged")
