"""The user's own pictures: a CSV or Parquet file with a row per picture (path, score or distribution, split)."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.listing import Listed, Listing
from pipeline.params import ManifestParams, did_you_mean


def read(params: ManifestParams, seed: int, pictures: Path) -> Listing:
    """Reads manifest.csv_file; see params.yaml for the columns."""
    if not params.csv_file:
        raise UserError("dataset: csv needs manifest.csv_file, a .csv or .parquet with one row per picture")
    file = Path(params.csv_file)
    if not file.is_file():
        raise UserError(f"manifest.csv_file: there is no file {file}")
    rows = _read_parquet(file) if file.suffix == ".parquet" else _read_csv(file)
    needed = [params.path_column, *params.score_columns, *([params.split_column] if params.split_column else [])]
    listed = []
    for where, row in rows:
        for column in needed:
            if column not in row:
                raise UserError(f"{where}: there is no column {column!r}{did_you_mean(column, [str(c) for c in row])}")
        path = str(row[params.path_column] or "")
        split = str(row[params.split_column] or "") if params.split_column else None
        target = tuple(_number(row[column], column, where) for column in params.score_columns)
        listed.append(Listed(path, path, target, split, where))
    root = Path(params.csv_root) if params.csv_root else file.parent
    low, high = params.score_range
    return Listing(root, listed, (low, high), params.accuracy_threshold)


def _read_csv(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(file, newline="", encoding="utf-8-sig") as text:  # -sig: spreadsheets put a byte order mark first
        rows = csv.DictReader(text)
        try:
            for row in rows:
                yield f"{file}:{rows.line_num}", row
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{file}:{rows.line_num + 1}: not a CSV file in UTF-8: {error}") from error


def _read_parquet(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
        raise UserError(f"{file}: not a Parquet file: {error}") from error
    for number, row in enumerate(rows, start=1):
        yield f"{file}, row {number}", row


def _number(value: Any, column: str, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"{where}: {column} is {value!r}, expected a number") from None
