"""The built-in data set: photographs blurred or made noisy to a known degree. No download."""

from pathlib import Path

import simplejpeg

from pipeline.datasets.demo_pictures import render_pictures, split_sources
from pipeline.listing import Listed, Listing
from pipeline.params import ManifestParams
from pipeline.store import write_whole


def read(params: ManifestParams, seed: int, pictures: Path) -> Listing:
    """Renders the pictures into the folder `pictures`; the seed turns over which photographs are held out."""
    del params
    pictures.mkdir(parents=True, exist_ok=True)
    splits = split_sources(seed)
    listed: list[Listed] = []
    for picture in render_pictures():
        name = f"{picture.name}.jpg"
        with write_whole(pictures / name) as file:
            file.write(simplejpeg.encode_jpeg(picture.image, quality=95, colorsubsampling="444"))
        listed.append(Listed(name, name, (picture.score,), splits[picture.source], f"demo:{len(listed) + 1}"))
    return Listing(pictures, listed, (0.0, 1.0), 0.5)
