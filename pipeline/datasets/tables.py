"""Labels as text: a file's characters, and the cells of a CSV file with the line that each row ends in."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from charm.runtime.errors import UserError


def read_text(file: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        UserError: it cannot be read, or with its line the byte that is no text.
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
    """(file and line, cells) of each row of a CSV file, the header first; a blank line has no cells.

    Raises:
        UserError: with file and line, not a CSV file.
    """
    rows = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        for cells in rows:
            yield f"{file}:{rows.line_num}", cells
    except csv.Error as error:
        raise UserError(f"{file}:{rows.line_num}: not a CSV file: {error}") from error
