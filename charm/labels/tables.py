"""Tables of labels: the characters of a file, the cells of a CSV file, the rows of a CSV or Parquet file."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from charm.runtime.errors import UserError, did_you_mean


def read_text(file: Path) -> str:
    """Reads a text file in UTF-8.

    Raises:
        UserError: the file cannot be read, or a byte is no text; says which byte in which line.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")  # -sig: spreadsheets put a byte order mark first
        bad = data.find(b"\0")
    except UnicodeDecodeError as error:
        text, data, bad = "", error.object, error.start
    if bad >= 0:
        line = data.count(b"\n", 0, bad) + 1
        raise UserError(f"{file}:{line}: byte {data[bad]:#04x} is no text; expected UTF-8")
    return text


def read_cells(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields (file and line, cells) of each row of a CSV file, the header first; a blank line has no cells.

    Raises:
        UserError: not a CSV file; says file and line.
    """
    rows = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        for cells in rows:
            yield f"{file}:{rows.line_num}", cells
    except csv.Error as error:
        raise UserError(f"{file}:{rows.line_num}: not a CSV file: {error}") from error


def read_table(file: Path, needed: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (file and line, column -> cell) of each row that is not blank of a CSV or, by its ending, Parquet file.

    Raises:
        UserError: another kind of file, a column of `needed` that is missing or there twice, or a row with too few or
            too many cells; says file and line.
    """
    return _read_parquet(file, needed) if file.suffix == ".parquet" else _read_csv(file, needed)


def _check_columns(where: str, columns: list[str], needed: list[str]) -> None:
    for column in needed:
        if column not in columns:
            raise UserError(f"{where}: there is no column {column!r}{did_you_mean(column, columns)}")
        if columns.count(column) > 1:
            raise UserError(f"{where}: there are {columns.count(column)} columns {column!r}; expected one")


def _read_csv(file: Path, needed: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (file and line, column -> cell) of each row of a CSV file that is not blank."""
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
