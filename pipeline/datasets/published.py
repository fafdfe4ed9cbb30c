"""The published data sets as they are downloaded: where labels and images lie, and which columns hold what.

Errors name file and line, what was expected, and the page that has the data set.
"""

import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from charm.labels.tables import Row, Table, is_blank, read_number, read_table, read_text
from charm.runtime.errors import UserError, escape_controls
from pipeline.manifest.labels import Listed, Listing, Source, read_split
from pipeline.settings.recipes import DATASETS

# Errors that openpyxl lets through on an archive with flipped bits or one that is cut short; RuntimeError: encrypted,
# or an unknown compression.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, ParseError, EOFError),
    *(LookupError, OSError, RuntimeError, TypeError, ValueError),
)


@dataclass(frozen=True)
class Layout:
    """What lies where in the folder of a data set; of several places the first that is there counts."""

    files: str  # for messages
    page: str  # address to get them from
    labels: dict[str | None, tuple[str, ...]]  # split -> places of its label file; None: the splits are drawn
    images: tuple[str, ...]  # places of the folder of images
    names: tuple[str, ...] = ("image",)  # columns that make up an image's path in that folder
    scores: tuple[str, ...] = ("score",)  # column of the score, or of the counts of ascending bins
    fields: tuple[str, ...] = ()  # columns of a label file without header, with spaces between them
    ending: str = ""  # of the images' files, where names have none
    test_images: tuple[str, ...] = ()  # places of the folder of the test images, before those of `images`
    test_list: tuple[str, ...] = ()  # places of a list of the names that are for test and not for training
    # Names of label files -> their column of the score, if it is not `scores`.
    other_scores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_AVA_COUNTS = tuple(f"count of {score}" for score in range(1, 11))
LAYOUTS = {
    # 255,530 photographs of dpchallenge.com with counts of the scores 1 to 10 (Murray et al., CVPR 2012). Test images
    # are those of the official list; the others are for training, with validation drawn from them.
    "ava": Layout(
        files="AVA.txt, aesthetics_image_lists/generic_test.jpgl and images/<image id>.jpg",
        page="https://github.com/imfing/ava_downloader",
        labels={"train": ("AVA.txt",)},
        images=("images/images", "images", "image"),
        names=("image id",),
        scores=_AVA_COUNTS,
        fields=("index", "image id", *_AVA_COUNTS, "first tag", "second tag", "challenge"),
        ending=".jpg",
        test_list=("aesthetics_image_lists/generic_test.jpgl", "generic_test.jpgl"),
    ),
    # 31,220 photographs with counts of the scores 1.0, 1.5 ... 5.0 (Yang et al., CVPR 2022). Validation is drawn from
    # training.
    "para": Layout(
        files="annotation/PARA-GiaaTrain.csv, annotation/PARA-GiaaTest.csv and imgs/<sessionId>/<imageName>",
        page="https://cv-datasets.institutecv.com/#/data-sets",
        labels={
            split: (f"annotation/PARA-Giaa{split.capitalize()}.csv", f"PARA-Giaa{split.capitalize()}.csv")
            for split in ("train", "test")
        },
        images=("imgs",),
        names=("sessionId", "imageName"),
        scores=tuple(f"aestheticScore_{half / 2:.1f}" for half in range(2, 11)),
    ),
    # 66,327 photographs of 47 themes with scores from 0 to 10 (He et al., IJCAI 2022). Validation is drawn from
    # training.
    "tad66k": Layout(
        files="labels/merge/train.csv, labels/merge/test.csv and TAD66K/<image>",
        page="https://github.com/woshidandan/TANet-image-aesthetics-and-quality-assessment",
        labels={
            split: (f"labels/merge/{split}.csv", f"dataset/merge/{split}.csv", f"merge/{split}.csv")
            for split in ("train", "test")
        },
        images=("TAD66K", "images"),
    ),
    # 9,958 photographs with scores from 0 to 1 (Kong et al., ECCV 2016). The copies of 256x256 pixels in
    # datasetImages_warp256 have lost their proportions and are not read.
    "aadb": Layout(
        files="imgListFiles_label/imgListTrainRegression_score.txt (and Validation, TestNew), "
        "datasetImages_originalSize/<image> and AADB_newtest_originalSize/<image>",
        page="https://github.com/aimerykong/deepImageAestheticsAnalysis",
        labels={
            split: tuple(
                f"{place}imgList{part}Regression_score.txt"
                for place in ("imgListFiles_label/", "imgListFiles_label/imgListFiles_label/", "")
            )
            for split, part in {"train": "Train", "val": "Validation", "test": "TestNew"}.items()
        },
        images=("datasetImages_originalSize",),
        test_images=("AADB_newtest_originalSize",),
        fields=("image", "score"),
    ),
    # 60,337 works of art with scores from 0 to 10 (Yi et al., CVPR 2023).
    "baid": Layout(
        files="dataset/train_set.csv, dataset/val_set.csv, dataset/test_set.csv and images/<image>",
        page="https://github.com/Dreemurr-T/BAID",
        labels={split: (f"dataset/{split}_set.csv", f"{split}_set.csv") for split in ("train", "val", "test")},
        images=("images",),
    ),
    # 11,125 photographs of smartphones with quality scores from 0 to 100 (Fang et al., CVPR 2020).
    "spaq": Layout(
        files="Annotations/MOS and Image attribute scores.xlsx and TestImage/<Image name>",
        page="https://github.com/h4nwei/SPAQ",
        labels={None: ("Annotations/MOS and Image attribute scores.xlsx", "MOS and Image attribute scores.xlsx")},
        images=("TestImage",),
        names=("Image name",),
        scores=("MOS",),
    ),
    # 10,073 photographs with quality scores from 0 to 100 (Hosu et al., TIP 2020). Splits are drawn, as in the paper,
    # or published with manifest.split_column: set.
    "koniq10k": Layout(
        files="koniq10k_distributions_sets.csv or koniq10k_scores_and_distributions.csv, and 1024x768/<image_name>",
        page="https://database.mmsp-kn.de/koniq-10k-database.html",
        labels={None: ("koniq10k_distributions_sets.csv", "koniq10k_scores_and_distributions.csv")},
        images=("1024x768",),
        names=("image_name",),
        scores=("MOS",),
        other_scores={"koniq10k_scores_and_distributions.csv": ("MOS_zscore",)},
    ),
}


@dataclass(frozen=True)
class PublishedReader:
    """Reads a data set of LAYOUTS; called with the places of its labels and images, it returns the listing."""

    dataset: str

    def __call__(self, source: Source) -> Listing:
        layout, listed = LAYOUTS[self.dataset], list[Listed]()
        test_file = self._find_file(source, layout.test_list) if layout.test_list else None
        test_rows = self._read_fields(test_file, layout.names) if test_file else ()
        test_names = {row[layout.names[0]] for _, row in test_rows}
        for split, places in layout.labels.items():
            own_images = layout.test_images if split == "test" else ()
            images = self._find_images(source, (*own_images, *layout.images))
            file, column = self._find_file(source, places), source.settings.split_column
            scores = layout.other_scores.get(file.name, layout.scores)
            for where, row in self._read_rows(file, (*layout.names, *scores, *([column] if column else []))):
                name = "/".join(_read_name(row, part, where) for part in layout.names)
                target = tuple(read_number(row[score], score, where) for score in scores)
                own = read_split(row[column]) if column else "test" if name in test_names else split
                listed.append(Listed(name, f"{images}/{name}{layout.ending}", target, own, where))
            if test_names:
                _check_test_list(len(test_names), sum(one.split == "test" for one in listed), test_file, file)
        recipe = DATASETS[self.dataset]
        return Listing(source.root, listed, recipe.score_range, recipe.accuracy_threshold, recipe.meaning)

    def _find_file(self, source: Source, places: Sequence[str]) -> Path:
        """Returns `labels` itself, or the first of `places` in that folder; raises UserError if none exists."""
        labels = source.labels
        if labels.is_file() and any(labels.name == Path(place).name for place in places):
            return labels
        inside = (labels / name for place in places for name in (place, Path(place).name))
        return next((file for file in inside if file.is_file()), None) or self._fail("file", places, labels, "labels")

    def _find_images(self, source: Source, places: Sequence[str]) -> str:
        """Returns the first of these folders that exists, as a path from the root; raises UserError if none does."""
        found = next((place for place in places if (source.root / place).is_dir()), None)
        return found or self._fail("folder", places, source.root, "manifest.root")

    def _fail(self, kind: str, places: Sequence[str], searched: Path, setting: str) -> Any:
        layout = LAYOUTS[self.dataset]
        raise UserError(
            f"dataset {self.dataset}: there is no {kind} {' or '.join(places)} in {searched} ({setting}); "
            f"expected {layout.files}; to be had from {layout.page}"
        )

    def _read_rows(self, file: Path, columns: Sequence[str]) -> Iterable[Row]:
        """Reads some columns of a label file; says if it is a table in text with other separators than published.

        Raises:
            UserError: another format, other labels, no rows, or too few or too many cells; says file and line.
        """
        if fields := LAYOUTS[self.dataset].fields:
            return self._read_fields(file, fields)
        table = _read_xlsx(file) if file.suffix == ".xlsx" else read_table(file, columns, columns)
        if table.form:
            print(escape_controls(f"manifest: {file}: {table.form}"))
        if missing := [name for name in columns if name not in table.columns]:
            raise UserError(
                f"{table.where}: not the labels of {self.dataset}: expected the columns {_show(columns)}; missing "
                f"{_show(missing)}; found {_show(table.columns)}"
            )
        if not table.rows:
            raise UserError(f"{table.where}: there are no rows below the header")
        return table.pick(columns)

    def _read_fields(self, file: Path, fields: Sequence[str]) -> Iterator[Row]:
        """Yields the rows of a file without header whose fields are separated by spaces; empty lines are skipped."""
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


def _check_test_list(count: int, found: int, tests: Path | None, labels: Path) -> None:
    """Says how many names of a list of test images have no scores; raises UserError if none has any."""
    if not found:
        raise UserError(f"{tests}: none of its {count} image ids is in {labels}")
    if found < count:
        told = f"{count - found} of the {count} image ids of {tests} have no scores in {labels}"
        print(escape_controls(f"manifest: {told}"))


def _read_xlsx(file: Path) -> Table:
    """Reads the first sheet of a workbook, its header in the first row; empty rows are skipped."""
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
    return Table(f"{file}, row 1", [str(name).strip() for name in header], numbered)


def _read_name(row: dict[str, Any], column: str, where: str) -> str:
    """Reads a cell that names an image or a folder of images; raises UserError if it is empty."""
    name = str(row[column] or "").strip()
    if not name:
        raise UserError(f"{where}: {column} is empty")
    return name


def _show(names: Sequence[str]) -> str:
    """Formats the first eight names, each cut to 40 characters, and the number of the others."""
    shown = ", ".join(repr(name[:40])[1:-1] for name in names[:8])  # repr: a name may hold a line end
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
