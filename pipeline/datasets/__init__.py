"""Readers: labels as a data set publishes them -> a Listing. One module per data set, one function `read` each."""

from collections.abc import Callable
from pathlib import Path

from pipeline.datasets import aadb, ava, baid, csv, demo, koniq10k, para, spaq, tad66k
from pipeline.manifest.labels import Listing
from pipeline.params import ManifestParams

# Called with the settings, the seed, and a folder that a reader which makes its images writes them to.
READERS: dict[str, Callable[[ManifestParams, int, Path], Listing]] = {
    "demo": demo.read,
    "csv": csv.read,
    "ava": ava.read,
    "para": para.read,
    "tad66k": tad66k.read,
    "aadb": aadb.read,
    "baid": baid.read,
    "spaq": spaq.read,
    "koniq10k": koniq10k.read,
}
