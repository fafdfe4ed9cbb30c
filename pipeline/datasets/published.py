"""The published data sets, a function each; what lies where in their folders is what `layout` says."""

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import ParseError

from charm.labels.tables import Row, Table, is_blank
from charm.runtime.errors import UserError
from pipeline.datasets.published_folder import DatasetFolder, read_name, read_scores
from pipeline.manifest.labels import SPLITS, Listed, Listing, Source, read_split

_AVA_COUNTS = tuple(f"count of {score}" for score in range(1, 11))
_AVA_FIELDS = ("index", "image id", *_AVA_COUNTS, "first tag", "second tag", "challenge")
_PARA_COUNTS = tuple(f"aestheticScore_{half / 2:.1f}" for half in range(2, 11))
# Errors that openpyxl lets through on an archive with flipped bits or one that is cut short; RuntimeError: encrypted,
# or an unknown compression.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, ParseError, EOFError),
    *(LookupError, OSError, RuntimeError, TypeError, ValueError),
)


def read_ava(source: Source) -> Listing:
    """Lists AVA: 255,530 photographs of dpchallenge.com with counts of the scores 1 to 10 (Murray et al., CVPR 2012).

    Test images are those of the official list; the others are for training, with validation drawn from them.
    """
    folder = DatasetFolder(
        "ava",
        source,
        layout="AVA.txt, aesthetics_image_lists/generic_test.jpgl and images/<image id>.jpg",
        page="https://github.com/imfing/ava_downloader",
    )
    labels = folder.find_file("AVA.txt")
    tests = folder.find_file("aesthetics_image_lists/generic_test.jpgl", "generic_test.jpgl")
    images = folder.find_images("images/images", "images", "image")
    test_ids = {row["image id"] for _, row in folder.read_fields(tests, "image id")}
    listed = []
    for where, row in folder.read_fields(labels, *_AVA_FIELDS):
        name = row["image id"]
        target = read_scores(row, _AVA_COUNTS, where)
        listed.append(Listed(name, f"{images}/{name}.jpg", target, "test" if name in test_ids else "train", where))
    unlabelled = len(test_ids) - sum(one.split == "test" for one in listed)
    if unlabelled == len(test_ids):
        raise UserError(f"{tests}: none of its {len(test_ids)} image ids is in {labels}")
    if unlabelled:
        print(f"manifest: {unlabelled} of the {len(test_ids)} image ids of {tests} have no scores in {labels}")
    return folder.listing(listed)


def read_para(source: Source) -> Listing:
    """Lists PARA: 31,220 photographs with counts of the scores 1.0, 1.5 ... 5.0 (Yang et al., CVPR 2022).

    Training and test are as published; validation is drawn from training.
    """
    folder = DatasetFolder(
        "para",
        source,
        layout="annotation/PARA-GiaaTrain.csv, annotation/PARA-GiaaTest.csv and imgs/<sessionId>/<imageName>",
        page="https://cv-datasets.institutecv.com/#/data-sets",
    )
    images = folder.find_images("imgs")
    listed = []
    for split in ("train", "test"):
        name = f"PARA-Giaa{split.capitalize()}.csv"
        for where, row in folder.read_csv(
            folder.find_file(f"annotation/{name}", name), "sessionId", "imageName", *_PARA_COUNTS
        ):
            image = f"{read_name(row, 'sessionId', where)}/{read_name(row, 'imageName', where)}"
            listed.append(Listed(image, f"{images}/{image}", read_scores(row, _PARA_COUNTS, where), split, where))
    return folder.listing(listed)


def read_tad66k(source: Source) -> Listing:
    """Lists TAD66K: 66,327 photographs of 47 themes with scores from 0 to 10 (He et al., IJCAI 2022).

    Training and test are as published; validation is drawn from training.
    """
    folder = DatasetFolder(
        "tad66k",
        source,
        layout="labels/merge/train.csv, labels/merge/test.csv and TAD66K/<image>",
        page="https://github.com/woshidandan/TANet-image-aesthetics-and-quality-assessment",
    )
    images = folder.find_images("TAD66K", "images")
    listed: list[Listed] = []
    for split in ("train", "test"):
        file = folder.find_file(*(f"{place}{split}.csv" for place in ("labels/merge/", "dataset/merge/", "merge/")))
        listed += folder.list_scores(folder.read_csv(file, "image", "score"), images, split)
    return folder.listing(listed)


def read_aadb(source: Source) -> Listing:
    """Lists AADB: 9,958 photographs with scores from 0 to 1 (Kong et al., ECCV 2016); all splits are as published.

    The copies of 256x256 pixels in datasetImages_warp256 have lost their proportions and are not read.
    """
    folder = DatasetFolder(
        "aadb",
        source,
        layout="imgListFiles_label/imgListTrainRegression_score.txt (and Validation, TestNew), "
        "datasetImages_originalSize/<image> and AADB_newtest_originalSize/<image>",
        page="https://github.com/aimerykong/deepImageAestheticsAnalysis",
    )
    listed: list[Listed] = []
    for split, part in {"train": "Train", "val": "Validation", "test": "TestNew"}.items():
        places = ["AADB_newtest_originalSize"] if split == "test" else []
        images = folder.find_images(*places, "datasetImages_originalSize")
        name = f"imgList{part}Regression_score.txt"
        file = folder.find_file(f"imgListFiles_label/{name}", f"imgListFiles_label/imgListFiles_label/{name}", name)
        listed += folder.list_scores(folder.read_fields(file, "image", "score"), images, split)
    return folder.listing(listed)


def read_baid(source: Source) -> Listing:
    """Lists BAID: 60,337 works of art with scores from 0 to 10 (Yi et al., CVPR 2023); all splits are as published."""
    folder = DatasetFolder(
        "baid",
        source,
        layout="dataset/train_set.csv, dataset/val_set.csv, dataset/test_set.csv and images/<image>",
        page="https://github.com/Dreemurr-T/BAID",
    )
    images = folder.find_images("images")
    listed: list[Listed] = []
    for split in SPLITS:
        file = folder.find_file(f"dataset/{split}_set.csv", f"{split}_set.csv")
        listed += folder.list_scores(folder.read_csv(file, "image", "score"), images, split)
    return folder.listing(listed)


def read_spaq(source: Source) -> Listing:
    """Lists SPAQ: 11,125 photographs of smartphones with quality scores from 0 to 100 (Fang et al., CVPR 2020).

    All splits are drawn, as none are published.
    """
    folder = DatasetFolder(
        "spaq",
        source,
        layout="Annotations/MOS and Image attribute scores.xlsx and TestImage/<Image name>",
        page="https://github.com/h4nwei/SPAQ",
    )
    name = "MOS and Image attribute scores.xlsx"
    rows = _read_xlsx(folder, folder.find_file(f"Annotations/{name}", name), "Image name", "MOS")
    return folder.listing(folder.list_scores(rows, folder.find_images("TestImage"), None, "Image name", "MOS"))


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


def read_koniq10k(source: Source) -> Listing:
    """Lists KonIQ-10k: 10,073 photographs with quality scores from 0 to 100 (Hosu et al., TIP 2020).

    Splits are drawn, as in the paper, or published with `manifest.split_column: set`. The table of both names has MOS
    on 0..100, the other one on 1..5, and MOS_zscore on 0..100.
    """
    folder = DatasetFolder(
        "koniq10k",
        source,
        layout="koniq10k_distributions_sets.csv or koniq10k_scores_and_distributions.csv, and 1024x768/<image_name>",
        page="https://database.mmsp-kn.de/koniq-10k-database.html",
    )
    file = folder.find_file("koniq10k_distributions_sets.csv", "koniq10k_scores_and_distributions.csv")
    score = "MOS" if file.name == "koniq10k_distributions_sets.csv" else "MOS_zscore"
    split = source.settings.split_column
    rows = folder.read_csv(file, "image_name", score, *([split] if split else []))
    listed = folder.list_scores(rows, folder.find_images("1024x768"), None, "image_name", score)
    if split:
        listed = [replace(one, split=read_split(row[split])) for one, (_, row) in zip(listed, rows, strict=True)]
    return folder.listing(listed)
