"""Small folders of the published data sets, in their true formats, with the faults that the real ones have.

Each lists 24 images: the second is cut short, the third is missing, the sixth is 1100 pixels long, and there is one
file more that nobody lists.
The published splits are 16 + 4 + 4, or 20 + 4 where no validation is published.
"""

from collections.abc import Callable
from pathlib import Path

import openpyxl
import simplejpeg

from tests.conftest import draw_image

NUM_LISTED = 24
PART = {"train": slice(0, 16), "val": slice(16, 20), "test": slice(20, 24)}
NUMBERS = range(NUM_LISTED)


def write_images(folder: Path, names: list[str], faults: bool = True) -> None:
    """Images of many sizes; the folder has one more, which no label names."""
    for index, name in enumerate([*names, "unlisted.jpg"]):
        height, width = (30, 1100) if faults and index == 5 else (40 + index, 70 - index)
        encoded = simplejpeg.encode_jpeg(draw_image(height, width, sum(name.encode())), quality=90)
        if faults and index == 1:
            encoded = encoded[: len(encoded) // 2]
        if not (faults and index == 2):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(encoded)


def score(index: int) -> float:
    """From 0 to 1."""
    return index / (NUM_LISTED - 1)


def counts(index: int, num_bins: int) -> list[int]:
    """Three votes for one bin, one for the next."""
    votes = [0] * num_bins
    votes[index % num_bins] += 3
    votes[(index + 1) % num_bins] += 1
    return votes


def write(file: Path, lines: list[str], end: str = "\n", start: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes((start + end.join(lines) + end).encode())


def write_ava(root: Path) -> None:
    """One id of the test list has no scores, as some of the real list."""
    ids = [str(953619 + 7 * index) for index in NUMBERS]
    write_images(root / "images", [f"{name}.jpg" for name in ids])
    rows = [f"{i + 1} {name} {' '.join(map(str, counts(i, 10)))} 1 22 1396" for i, name in enumerate(ids)]
    write(root / "AVA.txt", rows)
    write(root / "aesthetics_image_lists/generic_test.jpgl", [*ids[PART["test"]], "15765"])


def write_para(root: Path) -> None:
    names = [f"session{1 + index % 2}/iaa_pub{index}_.jpg" for index in NUMBERS]
    write_images(root / "imgs", names)
    bins = [f"aestheticScore_{1 + half / 2:.1f}" for half in range(9)]
    header = [
        "sessionId",
        "imageName",
        "semantic",
        *bins,
        "aestheticScore_mean",
        "aestheticScore_std",
        "qualityScore_1.0",
    ]
    for part, places in (("Train", slice(0, 20)), ("Test", PART["test"])):
        rows = [
            ",".join([*names[i].split("/"), "portrait", *(f"{count}.0" for count in counts(i, 9)), "3.1", "0.5", "0"])
            for i in NUMBERS[places]
        ]
        write(root / f"annotation/PARA-Giaa{part}.csv", [",".join(header), *rows], start="\ufeff")


def write_tad66k(root: Path) -> None:
    names = [f"{index}@N05618633908.jpg" for index in NUMBERS]
    write_images(root / "TAD66K", names)
    for part, places in (("train", slice(0, 20)), ("test", PART["test"])):
        rows = [f"{names[i]},{10 * score(i):.6f}" for i in NUMBERS[places]]
        write(root / f"labels/merge/{part}.csv", ["image,score", *rows], end="\r\n")


def write_aadb(root: Path) -> None:
    names = [f"farm1_{index}_1999673_b.jpg" for index in NUMBERS]
    write_images(root / "datasetImages_originalSize", names[:20])
    write_images(root / "AADB_newtest_originalSize", names[20:], faults=False)
    for split, part in (("train", "Train"), ("val", "Validation"), ("test", "TestNew")):
        rows = [f"{names[i]} {score(i):.6f}" for i in NUMBERS[PART[split]]]
        write(root / f"imgListFiles_label/imgList{part}Regression_score.txt", [*rows, ""])


def write_baid(root: Path) -> None:
    names = [f"{24429 + index}.jpg" for index in NUMBERS]
    write_images(root / "images", names)
    for split, places in PART.items():
        rows = [f"{names[i]},{10 * score(i):.6f}" for i in NUMBERS[places]]
        write(root / f"dataset/{split}_set.csv", ["image,score", *rows])


def write_spaq(root: Path) -> None:
    names = [f"{index + 1:05d}.jpg" for index in NUMBERS]
    write_images(root / "TestImage", names)
    book = openpyxl.Workbook()
    book.active.append(["Image name", "MOS", "Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"])
    for index, name in enumerate(names):
        book.active.append([name, 100 * score(index), 52.5, 60, 51, 53, 54])
    (root / "Annotations").mkdir(parents=True)
    book.save(root / "Annotations/MOS and Image attribute scores.xlsx")


def write_koniq10k(root: Path) -> None:
    names = [f"{10004473376 + index}.jpg" for index in NUMBERS]
    write_images(root / "1024x768", names)
    sets = {"train": "training", "val": "validation", "test": "test"}
    part = [next(sets[split] for split, places in PART.items() if i in NUMBERS[places]) for i in NUMBERS]
    rows = [f"{names[i]},0.0,0.0,0.25,0.7,0.05,105,{100 * score(i):.6f},0.527,{part[i]}" for i in NUMBERS]
    write(root / "koniq10k_distributions_sets.csv", ["image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set", *rows])


WRITERS: dict[str, Callable[[Path], None]] = {
    "ava": write_ava,
    "para": write_para,
    "tad66k": write_tad66k,
    "aadb": write_aadb,
    "baid": write_baid,
    "spaq": write_spaq,
    "koniq10k": write_koniq10k,
}
# The label files of each, from the folder.
LABELS = {
    "ava": ["AVA.txt", "aesthetics_image_lists/generic_test.jpgl"],
    "para": ["annotation/PARA-GiaaTrain.csv", "annotation/PARA-GiaaTest.csv"],
    "tad66k": ["labels/merge/train.csv", "labels/merge/test.csv"],
    "aadb": [f"imgListFiles_label/imgList{part}Regression_score.txt" for part in ("Train", "Validation", "TestNew")],
    "baid": ["dataset/train_set.csv", "dataset/val_set.csv", "dataset/test_set.csv"],
    "spaq": ["Annotations/MOS and Image attribute scores.xlsx"],
    "koniq10k": ["koniq10k_distributions_sets.csv"],
}
