"""What the command `score` says of a photograph, and the tables that it writes."""

import io
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from charm.images.find import escape_path
from charm.runtime.disk import atomic_write, encode_csv
from charm.runtime.errors import UserError
from charm.scores import Score


@dataclass(frozen=True)
class Row:
    """One photograph; scores as charm.scores.Score has them."""

    path: str  # as ImageFile has it
    state: tuple[int, int] | None  # bytes, and ns of the last change, before it was read; None where there is no file
    reason: str = ""  # key of REASONS; "" for a photograph that was scored, which alone has what follows
    score: float | None = None
    spread: float | None = None
    raw: float | None = None
    downscaled_to: list[int] | None = None  # pixels, (height, width), at which the model saw it; None: its own size
    distribution: list[float] | None = None
    percentile: float | None = None
    low: float | None = None  # end of its interval of LEVEL (charm.model.config); None where the model has none
    high: float | None = None


def fill_row(row: Row, score: Score) -> Row:
    """Returns the row of a photograph with its score."""
    told = {name: getattr(score, name) for name in ("score", "spread", "raw", "percentile")}
    low, high = score.interval() or (None, None)
    shares = None if score.distribution is None else score.distribution.tolist()
    return replace(row, **told, low=low, high=high, distribution=shares)


def format_line(row: Row, has_percentile: bool = False) -> str:
    """Formats a scored photograph for people: score, spread, interval, the percentile if it is asked for, and path."""
    spread = "" if row.spread is None else f"{row.spread:.4f}"
    seen = "" if row.downscaled_to is None else "\tseen at {}x{}".format(*row.downscaled_to)
    between = "" if row.low is None else f"{row.low:.4f} to {row.high:.4f}\t"
    percentile = f"{row.percentile:.1f}\t" if has_percentile else ""
    return f"{row.score:.4f}\t{spread}\t{between}{percentile}{escape_path(row.path)}{seen}"


def choose_format(out: Path) -> Callable[[list[dict[str, Any]]], bytes]:
    """Returns the function that turns rows into the bytes of a file of this name.

    Raises UserError if its ending says none of the formats, or its folder is not there.
    """
    if out.suffix.lower() not in FORMATS:
        raise UserError(f"--out {escape_path(str(out))}: expected a name that ends in {', '.join(FORMATS)}")
    if out.is_dir():
        raise UserError(f"--out {escape_path(str(out))} is a folder: expected the name of a file")
    if not out.parent.is_dir():
        raise UserError(f"--out {escape_path(str(out))}: there is no folder {escape_path(str(out.parent))}")
    return FORMATS[out.suffix.lower()]


def write_table(out: Path, rows: Sequence[Row], left_out: Collection[str]) -> None:
    """Writes the whole file at once, without the columns `left_out`, which not every model or command has."""
    every = ("score", "spread", "low", "high", "raw", "percentile", "downscaled_to", "distribution", "reason")
    names = [name for name in every if name not in left_out]
    records = [{"path": escape_path(row.path)} | {name: getattr(row, name) for name in names} for row in rows]
    data = choose_format(out)(records)
    with atomic_write(out) as file:
        file.write(data)


def _encode_parquet(records: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = dict.fromkeys(records[0], pa.float64()) | {"path": pa.string(), "reason": pa.string()}
    kinds |= {"downscaled_to": pa.list_(pa.int32()), "distribution": pa.list_(pa.float64())}
    schema = pa.schema([(name, kinds[name]) for name in records[0]])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema), buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def _encode_csv(records: list[dict[str, Any]]) -> bytes:
    """Encodes rows as CSV: lists are JSON in their field, and None is an empty field."""
    rows = [[json.dumps(cell) if isinstance(cell, list) else cell for cell in record.values()] for record in records]
    return encode_csv(list(records[0]), rows)


def _encode_jsonl(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


FORMATS = {".parquet": _encode_parquet, ".csv": _encode_csv, ".jsonl": _encode_jsonl}
