"""Readers: labels as a data set publishes them -> a Listing. One module per data set, one function `read` each."""

from collections.abc import Callable
from pathlib import Path

from pipeline.datasets import csv, demo
from pipeline.listing import Listing
from pipeline.params import ManifestParams

# Called with the settings, the seed, and a folder that a reader which makes its pictures writes them to.
READERS: dict[str, Callable[[ManifestParams, int, Path], Listing]] = {"demo": demo.read, "csv": csv.read}
