"""Parquet and Arrow files, read in parts: columns that nobody asks for, and rows that are done, take no memory."""

import contextlib
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from charm.runtime.errors import first_line

ARROW = (".arrow", ".feather")
ENDINGS = (".parquet", *ARROW)
_MAGICS = (b"PAR1", b"ARROW1")
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
_CELL = re.compile(rf"(.+(?:{'|'.join(map(re.escape, ENDINGS))}))#(.+)/([0-9]+)", re.IGNORECASE | re.DOTALL)
_ROWS = 2**14  # of labels, at a time


def name_cell(file: str, column: str, row: int) -> str:
    """Returns the path of the bytes in a cell of a table, for everything that reads files; rows count from 0."""
    return f"{file}#{column}/{row}"


def split_cell(path: str) -> tuple[str, tuple[str, int] | None]:
    """Splits the path of `name_cell` into that of the file, and column and row; (path, None) for other paths."""
    found = _CELL.fullmatch(path)
    return (found[1], (found[2], int(found[3]))) if found else (path, None)


def is_columnar(file: Path, start: bytes) -> bool:
    """Tells by its first bytes, or else its ending, whether a file is a Parquet or Arrow file."""
    return start.startswith(_MAGICS) or file.suffix.lower() in ENDINGS


@contextlib.contextmanager
def _as_value_error() -> Iterator[None]:
    """Turns the many kinds of errors that pyarrow raises on damaged files into ValueError, but for lacks of memory."""
    try:
        yield
    except (MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise ValueError(first_line(error)) from error


class ColumnFile:
    """A Parquet file, or a file or stream of Arrow, as Hugging Face's `save_to_disk` writes; `schema` is pyarrow's.

    Raises ValueError if it is of another kind, damaged or cut short, here and whenever something is read.
    """

    def __init__(self, file: Path) -> None:
        with _as_value_error():
            import pyarrow as pa
            import pyarrow.parquet as pq

            with open(file, "rb") as opened:
                start = opened.read(len(_MAGICS[1]))
            if start.startswith(_MAGICS[0]) or file.suffix.lower() not in ARROW:
                # Pages are read one after the other, where pyarrow would read a whole group of rows.
                options = {"buffer_size": 2**16, "pre_buffer": False, "page_checksum_verification": True}
                self._parquet = pq.ParquetFile(str(file), **options)
                facts = self._parquet.metadata
                sizes = (facts.row_group(group).num_rows for group in range(facts.num_row_groups))
                self._groups = list(accumulate(sizes, initial=0))  # the first row of each, and the number of rows
                self.schema = self._parquet.schema_arrow
                return
            self._parquet, self._is_stream = None, start != _MAGICS[1]
            try:
                self._source = pa.memory_map(str(file))
            except OSError:  # larger than the memory that a child process may address
                self._source = pa.OSFile(str(file))
            if self._is_stream:
                self._source.seek(max(0, self._source.size() - len(_STREAM_END)))
                if self._source.read() != _STREAM_END:  # Arrow takes a stream that is cut between two batches for whole
                    raise ValueError("cut short: it has no end")
            self.schema = self._open_arrow().schema

    def _open_arrow(self) -> Any:
        from pyarrow import ipc

        self._source.seek(0)
        return ipc.open_stream(self._source) if self._is_stream else ipc.open_file(self._source)

    def image_leaves(self, column: str) -> list[tuple[str, ...]]:
        """Returns the leaves of a column of images, as `read` takes them: bytes, then paths; [] of another column."""
        import pyarrow as pa

        place: int = self.schema.get_field_index(column)  # -1 if there is none, or two
        kind: Any = self.schema.field(place).type if place >= 0 else pa.null()
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return [(column, name) for name in ("bytes", "path") if kind.get_field_index(name) >= 0]
        return [(column,)] if kind in (pa.binary(), pa.large_binary(), pa.binary_view()) else []

    def read(
        self, leaves: Sequence[tuple[str, ...]], first: int = 0, rows: int = _ROWS
    ) -> Iterator[tuple[int, list[Any]]]:
        """Yields the number of a batch's first row, and an array of pyarrow for each leaf; to be run through once.

        Args:
            leaves: column, and field within it if it is a struct.
            first: rows before this one are passed over, as far as the file allows; a batch may begin before it.
            rows: at most, in a batch of Parquet.
        """
        with _as_value_error():
            import pyarrow.compute as pc

            for start, batch in self._read_batches([".".join(leaf) for leaf in leaves], first, rows):
                columns = [(batch.column(batch.schema.names.index(column)), field) for column, *field in leaves]
                yield start, [pc.struct_field(column, field) if field else column for column, field in columns]

    def _read_batches(self, leaves: list[str], first: int, rows: int) -> Iterator[tuple[int, Any]]:
        start = 0
        if self._parquet is not None:
            group = bisect_right(self._groups, first) - 1
            start, groups = self._groups[group], range(group, self._parquet.num_row_groups)
            batches = self._parquet.iter_batches(rows, row_groups=groups, columns=leaves, use_threads=False)
        else:
            arrow = self._open_arrow()
            batches = arrow if self._is_stream else map(arrow.get_batch, range(arrow.num_record_batches))
        for batch in batches:
            if start + batch.num_rows > first:
                yield start, batch
            start += batch.num_rows
