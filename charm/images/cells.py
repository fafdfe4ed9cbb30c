"""Images in tables: the bytes in a cell of a Parquet or Arrow file, as data sets of Hugging Face hold them.

The path of such an image is file.parquet#column/row, rows counted from 0 (charm.runtime.columns.name_cell), wherever a
path is read, recorded, or shown.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from charm.images.reasons import Rejected
from charm.runtime.columns import ColumnFile, split_cell

_ROWS = 16  # of Parquet, decoded at a time


def read_cell(file: Path, state: tuple[int, ...], column: str, row: int, max_bytes: int) -> bytes | str:
    """Reads the bytes in a cell, or the path of the image's file if the cell has that alone.

    Rows that are read in order are read once; memory is that of a page of Parquet, or of a batch of Arrow. The numbers
    `state` change when the file does. Raises Rejected: missing, too_many_bytes; corrupt, where the table is
    damaged.
    """
    try:
        data, *paths = _open(file, column, state).read(row)
    except Rejected:
        raise
    except (ValueError, OSError):
        raise Rejected("corrupt") from None
    if data.is_valid:
        if len(data.as_buffer()) > max_bytes:
            raise Rejected("too_many_bytes")
        return bytes(data.as_buffer())
    path = paths[0].as_py() if paths else None
    if not path or split_cell(path)[1]:
        raise Rejected("missing")
    return str(path)


class _Column:
    """A column of images, read on from where it was read last, by one thread."""

    def __init__(self, file: Path, column: str) -> None:
        self._table = ColumnFile(file)
        self._leaves = self._table.image_leaves(column)
        if not self._leaves:
            raise ValueError("no such column of images")
        self._start, self._end = 0, -1

    def read(self, row: int) -> list[Any]:
        """Returns pyarrow's scalars of a row: bytes, then the path if the column has paths."""
        if not self._start <= row <= self._end:
            self._batches = self._table.read(self._leaves, row, _ROWS)
        while not self._start <= row < self._end:
            self._end = -1  # stays so where the table is damaged: the next row begins anew
            self._start, self._arrays = next(self._batches, (0, []))
            if not self._arrays:
                raise Rejected("missing")
            self._end = self._start + len(self._arrays[0])
        return [array[row - self._start] for array in self._arrays]


_open = lru_cache(maxsize=1)(lambda file, column, state: _Column(file, column))  # state: another file, another column
