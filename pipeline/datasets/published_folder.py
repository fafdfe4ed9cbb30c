"""The folder of a published data set: finds its files, reads its labels, reports errors with file and line."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charm.labels.tables import Row, Table, read_number, read_table, read_text
from charm.runtime.errors import UserError
from pipeline.manifest.labels import Listed, Listing, Source
from pipeline.settings.recipes import DATASETS


@dataclass(frozen=True)
class DatasetFolder:
    """A published data set as it was downloaded."""

    dataset: str  # its name in params.yaml
    source: Source  # places of its labels and images
    layout: str  # the files that are read
    page: str  # address to get them from

    def find_file(self, *places: str) -> Path:
        """Returns `labels` itself, or the first of `places` in that folder; raises UserError if none exists."""
        labels = self.source.labels
        if labels.is_file() and any(labels.name == Path(place).name for place in places):
            return labels
        inside = (labels / name for place in places for name in (place, Path(place).name))
        return next((file for file in inside if file.is_file()), None) or self._fail("file", places, labels, "labels")

    def find_images(self, *places: str) -> str:
        """Returns the first of these folders that exists, as a path from the root; raises UserError if none does."""
        root = self.source.root
        found = next((place for place in places if (root / place).is_dir()), None)
        return found or self._fail("folder", places, root, "manifest.root")

    def _fail(self, kind: str, places: tuple[str, ...], searched: Path, setting: str) -> Any:
        raise UserError(
            f"dataset {self.dataset}: there is no {kind} {' or '.join(places)} in {searched} ({setting}); "
            f"expected {self.layout}; to be had from {self.page}"
        )

    def read_csv(self, file: Path, *columns: str) -> list[Row]:
        """Reads some columns of a table in text; says if it is not as published, with commas and decimal points.

        Raises:
            UserError: not CSV, other labels, or a row with too few or too many cells; says file and line.
        """
        table = read_table(file, columns, columns)
        if table.form:
            print(f"manifest: {file}: {table.form}")
        return self.pick(table, columns)

    def read_fields(self, file: Path, *fields: str) -> Iterator[Row]:
        """Yields the rows of a file without header whose fields are separated by spaces; empty lines are skipped.

        Raises:
            UserError: not text, other labels, or no labels; says file and line.
        """
        count = 0
        for number, line in enumerate(io.StringIO(read_text(file)), start=1):
            cells = line.split()
            if cells and len(cells) != len(fields):
                raise UserError(
                    f"{file}:{number}: not the labels of {self.dataset}: expected {len(fields)} fields with "
                    f"spaces between them ({', '.join(fields)}); found {len(cells)} ({_show(cells)})"
                )
            if cells:
                count += 1
                yield f"{file}:{number}", dict(zip(fields, cells, strict=True))
        if not count:
            raise UserError(f"{file} is empty")

    def pick(self, table: Table, columns: Sequence[str]) -> list[Row]:
        """Returns some columns of a table; raises UserError if the labels are others, or there are no rows."""
        if missing := [name for name in columns if name not in table.columns]:
            raise UserError(
                f"{table.where}: not the labels of {self.dataset}: expected the columns {_show(columns)}; missing "
                f"{_show(missing)}; found {_show(table.columns)}"
            )
        if not table.rows:
            raise UserError(f"{table.where}: there are no rows below the header")
        return table.pick(columns)

    def list_scores(
        self, rows: Iterable[Row], images: str, split: str | None, name: str = "image", score: str = "score"
    ) -> list[Listed]:
        """Lists images of the folder `images` with one score each, by the columns `name` and `score`."""
        return [
            Listed(image, f"{images}/{image}", read_scores(row, [score], where), split, where)
            for where, row in rows
            for image in [read_name(row, name, where)]
        ]

    def listing(self, images: list[Listed]) -> Listing:
        """Returns the listing of these images, with scores on the data set's own scale."""
        recipe = DATASETS[self.dataset]
        return Listing(self.source.root, images, recipe.score_range, recipe.accuracy_threshold, recipe.meaning)


def read_name(row: dict[str, Any], column: str, where: str) -> str:
    """Reads a cell that names an image or a folder of images; raises UserError if it is empty."""
    name = str(row[column] or "").strip()
    if not name:
        raise UserError(f"{where}: {column} is empty")
    return name


def read_scores(row: dict[str, Any], columns: Iterable[str], where: str) -> tuple[float, ...]:
    """Reads the numbers of some columns; raises UserError with file and line where one is none."""
    return tuple(read_number(row[column], column, where) for column in columns)


def _show(names: Sequence[str]) -> str:
    """Formats the first eight names, each cut to 40 characters, and the number of the others."""
    shown = ", ".join(repr(name[:40])[1:-1] for name in names[:8])  # repr: a name may hold a line end
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
