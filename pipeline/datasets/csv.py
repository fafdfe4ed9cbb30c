"""The user's own images: a CSV, Parquet or Arrow file with a row per rating (path, score or bins, split, group).

An image may be in the file itself, as Hugging Face writes it: struct<bytes, path>, or bytes alone.
"""

import os
from pathlib import Path
from typing import Any

from charm.labels.tables import Packed, is_blank, read_number, read_table
from charm.runtime.columns import name_cell
from charm.runtime.errors import UserError, escape_controls
from pipeline.manifest.labels import Listed, Listing, Source, read_split
from pipeline.work.store import repository_path


def read(source: Source) -> Listing:
    """Lists the rows of the file `labels`; see params.yaml for the columns."""
    file = source.labels
    if not file.is_file():
        problem = f"{file} is a folder" if file.is_dir() else f"there is no file {file}"
        raise UserError(f"labels: {problem}; dataset: csv needs a .csv, .tsv, .parquet or .arrow file")
    return list_own(source, list_rows(source, file))


def list_rows(source: Source, file: Path, split_of_all: str | None = None) -> list[Listed]:
    """Lists the rows of a file; all are of one split if there is no column of splits."""
    settings = source.settings
    scores, split, group = settings.score_columns, settings.split_column, settings.group_column
    columns = [settings.path_column, *scores, *(column for column in (split, group) if column)]
    table = read_table(file, columns, scores)
    if table.form:
        print(escape_controls(f"manifest: {file}: {table.form}"))
    listed = []
    for where, row in table.pick(columns):
        name = path = row[settings.path_column]
        if isinstance(name, Packed):
            place = os.path.relpath(repository_path(str(file)), source.root)
            path = name_cell(place, settings.path_column, name.row)
            name = name.name or path
        is_rated = not all(is_blank(row[score]) for score in scores)
        target = tuple(read_number(row[score], score, where) for score in scores) if is_rated else ()
        named_split = read_split(row[split]) if split else split_of_all
        named_group = _read_text(row[group]).strip() or None if group else None
        listed.append(Listed(_read_text(name), _read_text(path), target, named_split, where, named_group))
    return listed


def list_own(source: Source, listed: list[Listed]) -> Listing:
    """Returns the listing of the user's own images, without unrated ones; raises UserError if none is rated."""
    settings, labels = source.settings, source.labels
    scores = ", ".join(settings.score_columns)
    unrated = sum(not one.target for one in listed)
    if unrated == len(listed):
        problem = f"{scores}: empty in every row" if listed else "only a header"
        raise UserError(f"{labels}: {problem}; expected a row per image below the header, with its rating")
    if unrated:
        told = f"{unrated} of {len(listed)} rows have no rating and are left out"
        print(escape_controls(f"manifest: {labels}: {told}"))
    low, high = settings.score_range
    meaning = f"what {scores} of {labels.name} says of an image"
    return Listing(source.root, listed, (low, high), settings.accuracy_threshold, meaning)


def _read_text(cell: Any) -> str:
    return "" if cell is None else str(cell)
