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
        where = escape_path(str(folder / path))
        first, *others = Path(path).parts
        split = read_split(first) if read_split(first) in SPLITS else None
        names = others if split else [first, *others]
        if len(names) < 2:
            raise UserError(f"{where}: in no folder; expected folders named by their images' score: 4.5/a.jpg")
        listed.append(Listed(path, path, (read_number(names[0], "its folder's name", where),), split, where))
    low, high = source.settings.score_range
    meaning = f"what the folders of {folder.name} say of an image"
    return Listing(folder, listed, (low, high), source.settings.accuracy_threshold, meaning)


def list_images(source: Source, dataset: str, besides: str = "") -> tuple[Path, list[str]]:
    """Finds the images below manifest.root or, if that is empty, `labels`, and says what was passed over.

    Args:
        besides: ending of files that are read, too.

    Returns:
        The folder, and the images' paths from there.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    folder = source.root if source.settings.root else source.labels
    if not folder.is_dir():
        raise UserError(f"labels: there is no folder {folder}; dataset: {dataset} needs one that holds images")
    files, passed = find_image_files([str(folder)])
    del passed[besides]
    if passed:
        print(f"manifest: {folder}: {describe_passed(passed)}")
    if not files:
        raise UserError(f"labels: there are no images below {folder}")
    return folder, [str(Path(one.path).relative_to(folder)) for one in files]
