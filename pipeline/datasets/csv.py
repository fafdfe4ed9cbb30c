"""The user's own images: a CSV or Parquet file with a row per image (path, score or distribution, split)."""

import reprlib
from typing import Any

from charm.labels.tables import read_table
from charm.runtime.errors import UserError
from pipeline.manifest.labels import Listed, Listing, Source


def read(source: Source) -> Listing:
    """Lists the images of the file `labels`; see params.yaml for the columns."""
    settings, file = source.settings, source.labels
    if file.suffix not in (".csv", ".parquet"):
        raise UserError(f"labels: {file}: dataset: csv needs a .csv or .parquet file with one row per image")
    if not file.is_file():
        raise UserError(f"labels: there is no file {file}")
    split = settings.split_column
    listed = []
    for where, row in read_table(file, [settings.path_column, *settings.score_columns, *([split] if split else [])]):
        path = str(row[settings.path_column] or "")
        target = tuple(_number(row[column], column, where) for column in settings.score_columns)
        listed.append(Listed(path, path, target, str(row[split] or "") if split else None, where))
    if not listed:
        raise UserError(f"{file}: only a header; expected a row per image below it")
    low, high = settings.score_range
    meaning = f"what {', '.join(settings.score_columns)} of {file.name} says of an image"
    return Listing(source.root, listed, (low, high), settings.accuracy_threshold, meaning)


def _number(value: Any, column: str, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"{where}: {column} is {reprlib.repr(value)}, expected a number") from None
