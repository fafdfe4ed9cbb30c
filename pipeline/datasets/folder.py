"""A folder of folders that are named by their images' score: 4.5/a.jpg, or train/4.5/a.jpg with splits."""

from pathlib import Path

from charm.images.find import describe_passed, escape_path, find_image_files
from charm.labels.tables import read_number
from charm.runtime.errors import UserError
from pipeline.manifest.labels import SPLITS, Listed, Listing, Source, read_split


def read(source: Source) -> Listing:
    """Lists the images of a folder; what is passed over is counted, and said."""
    folder, paths = list_images(source, "folder")
    listed = []
    for path in paths:
        where, names = escape_path(str(folder / path)), Path(path).parts[:-1]
        split = read_split(names[0]) if names and read_split(names[0]) in SPLITS else None
        if len(names) < (2 if split else 1):
            raise UserError(f"{where}: in no folder; expected folders named by their images' score: 4.5/a.jpg")
        score = read_number(names[1 if split else 0], "its folder's name", where)
        listed.append(Listed(path, path, (score,), split, where))
    low, high = source.settings.score_range
    meaning = f"what the folders of {folder.name} say of an image"
    return Listing(folder, listed, (low, high), source.settings.accuracy_threshold, meaning)


def list_images(source: Source, dataset: str, besides: str = "") -> tuple[Path, list[str]]:
    """Finds the images below manifest.root or, if that is empty, `labels`, and says what was passed over.

    Returns that folder, and the paths from there; files that end in `besides` are read, too.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    folder = source.root if source.settings.root else source.labels
    if not folder.is_dir():
        raise UserError(f"labels: there is no folder {folder}; dataset: {dataset} needs one that holds images")
    files, passed = find_image_files([str(folder)])
    del passed[besides]
    if passed:
        print(f"manifest: {escape_path(str(folder))}: {describe_passed(passed)}")
    if not files:
        raise UserError(f"labels: there are no images below {folder}")
    return folder, [str(Path(one.path).relative_to(folder)) for one in files]
