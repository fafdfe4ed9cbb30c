"""SPAQ: 11,125 photographs of smartphones with quality scores from 0 to 100 (Fang et al., CVPR 2020).

Annotations/MOS and Image attribute scores.xlsx    Image name, MOS and scores of attributes
TestImage/<Image name>
"""

import zipfile
import zlib
from pathlib import Path
from xml.etree.ElementTree import ParseError

from charm.labels.tables import Row, Table, is_blank
from charm.runtime.errors import UserError
from pipeline.datasets.published import DatasetFolder, list_scores
from pipeline.manifest.labels import Listing, Source

# Errors that openpyxl lets through on an archive with flipped bits or one that is cut short; RuntimeError: encrypted,
# or an unknown compression.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    ParseError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read(source: Source) -> Listing:
    """Lists the images; all splits are drawn, as none are published."""
    folder = DatasetFolder(
        "spaq",
        source,
        layout="Annotations/MOS and Image attribute scores.xlsx and TestImage/<Image name>",
        page="https://github.com/h4nwei/SPAQ",
    )
    name = "MOS and Image attribute scores.xlsx"
    rows = _read_xlsx(folder, folder.find_file(f"Annotations/{name}", name), "Image name", "MOS")
    return folder.listing(list_scores(rows, "Image name", "MOS", folder.find_images("TestImage"), split=None))


def _read_xlsx(folder: DatasetFolder, file: Path, *columns: str) -> list[Row]:
    """Reads the rows of the first sheet below its header; empty rows are skipped."""
    import openpyxl

    try:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        sheet = book.worksheets[0]
        sheet.reset_dimensions()  # some programs write a size that is too small, and rows would be cut
        header, *rows = list(sheet.iter_rows(values_only=True)) or [()]
        book.close()
    except _DAMAGED as error:
        raise UserError(f"{file}: not an Excel file (.xlsx), or a damaged one: {error}") from error
    numbered = [
        (f"{file}, row {number}", cells) for number, cells in enumerate(rows, start=2) if not all(map(is_blank, cells))
    ]
    return folder.pick(Table(f"{file}, row 1", [str(name).strip() for name in header], numbered), columns)
