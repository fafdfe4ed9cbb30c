"""The user's own images: a CSV or Parquet file with a row per image (path, score or distribution, split)."""

import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from charm.runtime.errors import UserError
from pipeline.datasets.tables import read_cells
from pipeline.manifest.labels import Listed, Listing
from pipeline.params import ManifestParams, did_you_mean
from pipeline.store import repository_path


def read(params: ManifestParams, seed: int, rendered: Path) -> Listing:
    """Reads manifest.csv_file; see params.yaml for the columns."""
    if not params.csv_file:
        raise UserError("dataset: csv needs manifest.csv_file, a .csv or .parquet with one row per image")
    file = repository_path(params.csv_file)
    if not file.is_file():
        raise UserError(f"manifest.csv_file: there is no file {file}")
    needed = [params.path_column, *params.score_columns, *([params.split_column] if params.split_column else [])]
    rows = _read_parquet(file, needed) if file.suffix == ".parquet" else _read_csv(file, needed)
    listed = []
    for where, row in rows:
        path = str(row[params.path_column] or "")
        split = str(row[params.split_column] or "") if params.split_column else None
        target = tuple(_number(row[column], column, where) for column in params.score_columns)
        listed.append(Listed(path, path, target, split, where))
    if not listed:
        raise UserError(f"{file}: only a header; expected a row per image below it")
    root = repository_path(params.csv_root) if params.csv_root else file.parent
    low, high = params.score_range
    return Listing(root, listed, (low, high), params.accuracy_threshold)


def _check_columns(where: str, columns: list[str], needed: list[str]) -> None:
    for column in needed:
        if column not in columns:
            raise UserError(f"{where}: there is no column {column!r}{did_you_mean(column, columns)}")
        if columns.count(column) > 1:
            raise UserError(f"{where}: there are {columns.count(column)} columns {column!r}; expected one")


def _read_csv(file: Path, needed: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(file and line, row) of each row that is not blank."""
    rows = read_cells(file)
    _, header = next(rows, ("", []))
    if not header:
        raise UserError(f"{file}:1: no header; expected a line with the columns {', '.join(needed)}")
    separator = next((one for one in (";", "\t", "|") if len(header) == 1 and one in header[0]), None)
    if separator and header[0] not in needed:
        raise UserError(f"{file}:1: the columns are separated by {separator!r}; expected a comma")
    _check_columns(f"{file}:1", header, needed)
    for where, row in rows:
        if row and len(row) != len(header):
            raise UserError(f"{where}: {_count_fields(row)}; expected {len(header)}, as the header has")
        if row:
            yield where, dict(zip(header, row, strict=True))


def _count_fields(row: list[str]) -> str:
    return "1 field" if len(row) == 1 else f"{len(row)} fields"


def _read_parquet(file: Path, needed: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
        rows = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
        raise UserError(f"{file}: not a Parquet file: {error}") from error
    _check_columns(str(file), table.column_names, needed)
    for number, row in enumerate(rows, start=1):
        yield f"{file}, row {number}", row


def _number(value: Any, column: str, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"{where}: {column} is {reprlib.repr(value)}, expected a number") from None
