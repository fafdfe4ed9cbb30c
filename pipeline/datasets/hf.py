"""A local folder of Hugging Face's `datasets`, read without that library.

As `load_dataset` finds it: data/train-00000-of-00002.parquet, train.parquet, default/train/0000.parquet, ...
As `save_to_disk` writes it: state.json with its .arrow files, or dataset_dict.json and such a folder for each split.
"""

import json
import re
from collections import Counter
from pathlib import Path

from charm.runtime.errors import UserError
from pipeline.datasets.csv import list_own, list_rows
from pipeline.manifest.labels import SPLITS, Listing, Source, read_split

_PART = re.compile(r"(.+?)-[0-9]{5}-of-([0-9]{5})(-\w+)?")
_EXPECTED = "expected .parquet files, named by their splits, or what save_to_disk has written"


def read(source: Source) -> Listing:
    """Lists the rows of all files below the folder `labels`, in their order; files are named by splits."""
    folder = source.labels
    if not folder.is_dir():
        raise UserError(f"labels: there is no folder {folder}; dataset: hf needs one: {_EXPECTED}")
    files = _find_saved(folder) or _find_parquet(folder)
    if not files:
        raise UserError(f"labels: {folder} holds no data: {_EXPECTED}")
    return list_own(source, [one for file, split in files for one in list_rows(source, file, split)])


def _find_saved(folder: Path) -> list[tuple[Path, str | None]]:
    """Finds the files of save_to_disk that its JSON lists, with their splits; cached results lie beside them."""
    found, path = [], folder / "dataset_dict.json"
    try:
        states = {folder / "state.json": ""} if (folder / "state.json").is_file() else {}
        if path.is_file():
            states = {folder / name / "state.json": name for name in json.loads(path.read_bytes())["splits"]}
        for path, split in states.items():
            facts = json.loads(path.read_bytes())
            named = read_split(split or facts.get("_split")) or None
            found += [(path.parent / one["filename"], named) for one in facts["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: missing or damaged ({error}); save the data set again with save_to_disk") from error
    if lost := next((file for file, _ in found if not file.is_file()), None):
        raise UserError(f"{lost} is missing, and state.json beside it lists it: copy the folder again")
    return found


def _find_parquet(folder: Path) -> list[tuple[Path, str | None]]:
    """Finds all Parquet files, with the splits that they, or else the folders that they are in, are named by."""
    found, counts, homes = [], Counter[tuple[Path, str, int]](), set()
    for file in sorted(folder.rglob("*.parquet")):
        part, above = _PART.fullmatch(file.stem), file.relative_to(folder).parts[:-1]
        if part:
            counts[file.parent, part[1], int(part[2])] += 1
        names = [read_split(name) for name in (part[1] if part else file.stem, *reversed(above))]
        split = next((name for name in names if name in SPLITS), names[0] if part else None)
        homes.add("/".join(name for name in above if name != "data" and read_split(name) not in SPLITS))
        found.append((file, split))
    for (parent, name, total), count in counts.items():
        if count != total:
            raise UserError(f"{parent}: {count} of {total} files of {name} are there: copy the others, too")
    if len(homes) > 1:
        names = sorted(homes)
        raise UserError(
            f"labels: {folder} holds several data sets ({', '.join(names)}): name the folder of one of them"
        )
    return found
