"""The user's own images: a CSV or Parquet file with a row per rating (path, score or distribution, split, group)."""

from typing import Any

from charm.labels.tables import is_blank, read_number, read_table
from charm.runtime.errors import UserError
from pipeline.manifest.labels import Listed, Listing, Source, read_split


def read(source: Source) -> Listing:
    """Lists the rows of the file `labels`; see params.yaml for the columns."""
    settings, file = source.settings, source.labels
    if not file.is_file():
        problem = f"{file} is a folder" if file.is_dir() else f"there is no file {file}"
        raise UserError(f"labels: {problem}; dataset: csv needs a .csv, .tsv or .parquet file")
    scores, split, group = settings.score_columns, settings.split_column, settings.group_column
    columns = [settings.path_column, *scores, *(column for column in (split, group) if column)]
    table = read_table(file, columns, scores)
    if table.form:
        print(f"manifest: {file}: {table.form}")
    listed = []
    for where, row in table.pick(columns):
        path = _read_text(row[settings.path_column])
        is_rated = not all(is_blank(row[score]) for score in scores)
        target = tuple(read_number(row[score], score, where) for score in scores) if is_rated else ()
        named_split = read_split(row[split]) if split else None
        named_group = _read_text(row[group]).strip() or None if group else None
        listed.append(Listed(path, path, target, named_split, where, named_group))
    unrated = sum(not one.target for one in listed)
    if unrated == len(listed):
        problem = f"{', '.join(scores)}: empty in every row" if listed else "only a header"
        raise UserError(f"{file}: {problem}; expected a row per image below the header, with its rating")
    if unrated:
        print(f"manifest: {file}: {unrated} of {len(listed)} rows have no rating and are left out")
    low, high = settings.score_range
    meaning = f"what {', '.join(scores)} of {file.name} says of an image"
    return Listing(source.root, listed, (low, high), settings.accuracy_threshold, meaning)


def _read_text(cell: Any) -> str:
    return "" if cell is None else str(cell)
