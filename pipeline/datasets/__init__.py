"""Readers of data sets: labels as they are published come in, a `Listing` goes out.

Called by the stage `manifest`.
"""

from collections.abc import Callable

from pipeline.datasets import csv, demo, folder, hf, published, stars
from pipeline.manifest.labels import Listing, Source

READERS: dict[str, Callable[[Source], Listing]] = {
    "demo": demo.read,
    "csv": csv.read,
    "hf": hf.read,
    "folder": folder.read,
    "stars": stars.read,
    "ava": published.read_ava,
    "para": published.read_para,
    "tad66k": published.read_tad66k,
    "aadb": published.read_aadb,
    "baid": published.read_baid,
    "spaq": published.read_spaq,
    "koniq10k": published.read_koniq10k,
}
