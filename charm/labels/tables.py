"""Tables of labels: the characters of a file, the rows of a CSV, Parquet or Arrow file, the number in a cell."""

import csv
import io
import json
import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import repeat
from pathlib import Path
from typing import Any

from charm.runtime.columns import ARROW, ColumnFile, is_columnar
from charm.runtime.errors import UserError, did_you_mean

ENDINGS = (".csv", ".tsv", ".tab", ".txt", ".arrow", ".parquet")
# The first bytes of files that are often taken for CSV -> their kind and the remedy.
_AS_CSV = 'save its sheet as "CSV UTF-8"'
_FOREIGN = {
    b"PK\x03\x04": ("an Excel file (.xlsx) or another zip archive", f"{_AS_CSV}, or unpack it"),
    b"\xd0\xcf\x11\xe0": ("an Excel file (.xls)", _AS_CSV),
    b"\x1f\x8b": ("compressed by gzip", "unpack it with gunzip"),
    b"\xfd7zXZ\0": ("compressed by xz", "unpack it with unxz"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unpack it with unzstd"),
    b"<": ("a web page or XML", "download the file itself"),
}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_SEPARATORS = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'"}
_SEMICOLONS = "decimal commas need columns that are separated by semicolons or tabs"
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

# A row of labels: file and line, for messages, and column -> cell.
Row = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Packed:
    """A cell that holds an image: its name, where the table has one, and its row, counted from 0."""

    name: str | None
    row: int


@dataclass(frozen=True)
class Table:
    """A table of labels."""

    where: str  # file and line of the header, for messages
    columns: list[str]
    rows: Sequence[tuple[str, Sequence[Any]]]  # of each row that is not blank, file and line, and its cells
    form: str = ""  # how the file differs from UTF-8 with commas and decimal points, for people; "" if it does not

    def pick(self, needed: Sequence[str]) -> list[Row]:
        """Returns the cells of some columns; a cell that a row ends before is None.

        Raises UserError if a column is missing or there twice.
        """
        for column in needed:
            if column not in self.columns:
                raise UserError(f"{self.where}: there is no column {column!r}{did_you_mean(column, self.columns)}")
            if self.columns.count(column) > 1:
                raise UserError(
                    f"{self.where}: there are {self.columns.count(column)} columns {column!r}; expected one"
                )
        places = {column: self.columns.index(column) for column in needed}
        return [
            (where, {column: cells[place] if place < len(cells) else None for column, place in places.items()})
            for where, cells in self.rows
        ]


def read_text(file: Path) -> str:
    """Reads a text file in UTF-8, or in UTF-16 if its byte order mark says so.

    Raises:
        UserError: the file cannot be read, is of another kind, or a byte is no text; says which byte in which line.
    """
    return _decode(file, _read_bytes(file))


def is_blank(cell: Any) -> bool:
    """Tells whether a cell is empty, or holds nothing but blanks."""
    return cell is None or not str(cell).strip()


def read_number(cell: Any, column: str, where: str) -> float:
    """Reads a cell as a decimal number; 1_5, 0x1, nan and inf, which are numbers for Python, are not.

    Raises UserError if the cell holds no finite decimal number.
    """
    is_number = isinstance(cell, int | float | Decimal) and not isinstance(cell, bool)
    if is_number or (isinstance(cell, str) and _NUMBER.fullmatch(cell.strip())):
        try:
            number = float(cell)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    hint = f"; {_SEMICOLONS}" if "," in str(cell) and _NUMBER.fullmatch(str(cell).strip().replace(",", ".")) else ""
    raise UserError(f"{where}: {column} is {reprlib.repr(cell)}, expected a decimal number{hint}")


def read_table(file: Path, needed: Sequence[str], numbers: Sequence[str]) -> Table:
    """Reads a table: Parquet, Arrow, or text with a header, its columns separated by commas, semicolons, tabs or bars.

    Args:
        file: the table; rows of nothing but separators are passed over.
        needed: columns that tell the separator by standing in the header.
        numbers: the columns among them in which a comma is a decimal comma, unless commas separate the columns.

    Raises:
        UserError: another kind of file, a row with too few or too many cells, or numbers with decimal commas beside
            numbers with points; says file and line.
    """
    if is_columnar(file, _read_bytes(file, 8)):
        return _read_columns(file, needed)
    data = _read_bytes(file)
    # Some spreadsheets write `sep=;` above the header. A blank line in its place keeps the count of lines.
    text = re.sub(r"\Asep=.(?=\r?\n)", "", _decode(file, data))
    if file.suffix.lower() not in ENDINGS:
        raise UserError(f"{file}: expected a table of labels, {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    separator = max(_SEPARATORS, key=lambda one: _count_columns(file, text, one, needed))
    lines = _read_cells(file, text, separator)
    header, columns = next(lines, ("", []))
    if not columns:
        raise UserError(f"{file}:1: no header; expected a line with the columns {', '.join(needed)}")
    columns, rows = [name.strip() for name in columns], list(lines)
    for where, cells in rows:
        if len(cells) != len(columns):
            hint = f"; {_SEMICOLONS}" if separator == "," and len(cells) > len(columns) else ""
            fields = "1 field" if len(cells) == 1 else f"{len(cells)} fields"
            raise UserError(f"{where}: {fields}; expected {len(columns)}, as the header has{hint}")
    places = [place for place, column in enumerate(columns) if column in numbers]
    form = [
        f"columns separated by {_SEPARATORS[separator]}" if separator != "," else "",
        "decimal commas" if separator != "," and _replace_decimal_commas(rows, places) else "",
        "UTF-16" if data.startswith(_UTF_16) else "",
    ]
    return Table(header, columns, rows, ", ".join(filter(None, form)))


def _read_bytes(file: Path, most: int = -1) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read(most)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error


def _decode(file: Path, data: bytes) -> str:
    for start, (kind, remedy) in _FOREIGN.items():
        if data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(start):
            raise UserError(f"{file}: not a table in text, but {kind}: {remedy}")
    # -sig: spreadsheets put a byte order mark first
    encoding = "utf-16" if data.startswith(_UTF_16) else "utf-8-sig"
    try:
        text = data.decode(encoding)
        before, nul, _ = text.partition("\0")
        if not nul:
            return text
        byte = 0
    except UnicodeDecodeError as error:
        before, byte = error.object[: error.start].decode(encoding, "ignore"), error.object[error.start]
    line = before.count("\n") + 1
    raise UserError(f"{file}:{line}: byte {byte:#04x} is no text; expected UTF-8 ({_AS_CSV})")


def _read_cells(file: Path, text: str, separator: str) -> Iterator[tuple[str, list[str]]]:
    """Yields file and line, and the cells, of each row that is not blank."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for cells in rows:
            if not all(map(is_blank, cells)):
                yield f"{file}:{rows.line_num}", cells
    except csv.Error as error:
        raise UserError(f"{file}:{rows.line_num}: not a CSV file: {error}") from error


def _count_columns(file: Path, text: str, separator: str, needed: Sequence[str]) -> tuple[int, int]:
    """Counts the needed columns, and the separators, in the header."""
    try:
        _, header = next(_read_cells(file, text, separator), ("", []))
    except UserError:  # told when the table is read
        return 0, 0
    return sum(name.strip() in needed for name in header), max(len(header) - 1, 0)


def _replace_decimal_commas(rows: list[tuple[str, list[str]]], places: list[int]) -> bool:
    """Replaces the decimal commas in some columns by points; tells whether there were any.

    Raises UserError if there are decimal points, too, so that one of them might separate thousands.
    """
    found: dict[str, str] = {}
    for where, cells in rows:
        for place in places:
            pointed = cells[place].replace(",", ".")
            if "." in pointed and _NUMBER.fullmatch(pointed.strip()):
                found.setdefault("comma" if pointed != cells[place] else "point", f"{where}: {cells[place].strip()!r}")
                cells[place] = pointed
    if len(found) == 2:
        raise UserError(f"{found['comma']} has a decimal comma, {found['point']} a point; expected one of them")
    return "comma" in found


def _read_columns(file: Path, needed: Sequence[str]) -> Table:
    """Reads the needed columns of a Parquet or Arrow file; of images the names alone."""
    try:
        table = ColumnFile(file)
        names: list[str] = table.schema.names
        found = [name for name in dict.fromkeys(needed) if names.count(name) == 1]
        is_whole = len(found) == len(set(needed))  # else `pick` says what is wrong
        rows = [
            (f"{file}, row {number}", row) for number, row in enumerate(_read_rows(table, found), start=1)
        ] * is_whole
    except (ValueError, LookupError) as error:
        kind = "an Arrow" if file.suffix.lower() in ARROW else "a Parquet"
        raise UserError(f"{file}: not {kind} file: {error}; write or download it again") from error
    return Table(str(file), [*found, *(name for name in names if name not in found)], rows)


def _read_rows(table: ColumnFile, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Yields the cells of some columns, row by row."""
    images = {name: table.image_leaves(name) for name in columns}
    classes = _find_classes(table.schema)
    leaves = {name: leaf for name in columns for leaf in (images[name][1:] if images[name] else [(name,)])}
    for start, arrays in table.read(list(leaves.values())):
        rows = range(start, start + len(arrays[0]))
        cells: dict[str, Iterable[Any]] = dict(zip(leaves, (array.to_pylist() for array in arrays), strict=True))
        for name in columns:
            if images[name]:
                cells[name] = map(Packed, cells.get(name, repeat(None, len(rows))), rows)
            elif name in classes:  # -1 where nobody knows
                cells[name] = [None if cell in (None, -1) else classes[name][cell] for cell in cells[name]]
        yield from zip(*(cells[name] for name in columns), strict=True)


def _find_classes(schema: Any) -> dict[str, dict[int, str]]:
    """Finds the columns whose integers stand for names (ClassLabel of Hugging Face): column -> integer -> name."""
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return {
        column: dict(enumerate(feature["names"]))
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
