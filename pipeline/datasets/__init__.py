"""Readers of data sets: labels as they are published come in, a `Listing` goes out.

Called by the stage `manifest`.
"""

from collections.abc import Callable

from pipeline.datasets import csv, demo, folder, hf, stars
from pipeline.datasets.published import LAYOUTS, PublishedReader
from pipeline.manifest.labels import Listing, Source

READERS: dict[str, Callable[[Source], Listing]] = {
    "demo": demo.read,
    "csv": csv.read,
    "hf": hf.read,
    "folder": folder.read,
    "stars": stars.read,
    **{name: PublishedReader(name) for name in LAYOUTS},
}
