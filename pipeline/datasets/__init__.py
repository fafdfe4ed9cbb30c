"""Readers of data sets: labels as they are published come in, a `Listing` goes out; one function `read` per module.

Called by the stage `manifest`.
"""

from collections.abc import Callable

from pipeline.datasets import aadb, ava, baid, csv, demo, folder, hf, koniq10k, para, spaq, stars, tad66k
from pipeline.manifest.labels import Listing, Source

READERS: dict[str, Callable[[Source], Listing]] = {
    "demo": demo.read,
    "csv": csv.read,
    "hf": hf.read,
    "folder": folder.read,
    "stars": stars.read,
    "ava": ava.read,
    "para": para.read,
    "tad66k": tad66k.read,
    "aadb": aadb.read,
    "baid": baid.read,
    "spaq": spaq.read,
    "koniq10k": koniq10k.read,
}
