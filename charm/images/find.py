"""Image files that a user names: finds them, and reads their bytes after a child process has decoded them."""

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from charm.images.decode import decode_image
from charm.images.limits import ENDINGS, LIMITS, Colour, Limits
from charm.images.quarantine import Quarantine, read_file
from charm.images.reasons import REASONS, Rejected
from charm.runtime.columns import split_cell
from charm.runtime.disk import guard_name
from charm.runtime.errors import UserError, escape_controls

_TRIES = 3  # for a file that is written to meanwhile
_MOST_KINDS = 8  # of what was passed over, named one by one


@dataclass(frozen=True)
class ImageFile:
    """An image file that a user named, or that was found below a named folder."""

    path: str
    root: Path  # the folder that links in the path may not lead out of

    @property
    def place(self) -> str:
        """The absolute path."""
        return str(Path(self.path).absolute())


def find_image_files(paths: Sequence[str]) -> tuple[list[ImageFile], Counter[str]]:
    """Finds the files at some paths, and those with the ending of an image in or below folders, sorted by name.

    A file that comes up twice is taken once. Folders that cannot be read, and links that lead out of their folder, are
    listed to be rejected: nothing gets lost. A relative path that a spreadsheet would run as a formula begins with ./

    Returns:
        The files, and how many were passed over in folders, by ending; hidden files and folders, and links to folders,
        are counted as such.

    Raises:
        UserError: a path does not exist, or there is nothing below all of them.
    """
    found: dict[str, ImageFile] = {}
    passed: dict[str, str] = {}  # real path -> kind
    for path in map(guard_name, paths):
        if Path(path).is_dir():
            for real, image_file in _walk(path, Path(path).resolve(), passed):
                if real not in found or Path(found[real].path).is_symlink():  # its own name is better than a link's
                    found[real] = image_file
        elif os.path.lexists(split_cell(path)[0]):
            found.setdefault(os.path.realpath(path), ImageFile(path, Path(Path(path).absolute().anchor)))
        else:
            raise UserError(f"{escape_path(path)}: there is no such file or folder")
    if not found and not passed:
        raise UserError(f"no files in {', '.join(map(escape_path, paths))}")
    return list(found.values()), Counter(kind for real, kind in passed.items() if real not in found)


def describe_passed(passed: Counter[str]) -> str:
    """Says how many files were passed over, by ending, and what to do."""
    kinds = [f"{count} {escape_path(kind)}" for kind, count in passed.most_common(_MOST_KINDS)]
    if rest := passed.total() - sum(count for _, count in passed.most_common(_MOST_KINDS)):
        kinds.append(f"{rest} others")
    return f"{', '.join(kinds)} passed over: in folders, files that end in {' '.join(ENDINGS)} are looked for"


def _walk(top: str, root: Path, passed: dict[str, str]) -> Iterator[tuple[str, ImageFile]]:
    """Yields (identity, image file) of a folder in order of names; equal identities are one file.

    Args:
        passed: gets what is passed over, real path -> kind.
    """
    waiting = [(top, "", True)]  # a stack of our own: Python's ends at 1,000 folders within each other
    while waiting:
        path, name, is_folder = waiting.pop()
        if is_folder and not name.startswith("."):
            try:
                with os.scandir(path) as entries:
                    inside = [(one.path, one.name, one.is_dir(follow_symlinks=False)) for one in entries]
            except OSError:  # the folder is listed, to be reported with the files that cannot be opened
                yield path, ImageFile(path, root)
                continue
            waiting += sorted(inside, key=lambda one: one[1], reverse=True)
            continue
        real = os.path.realpath(path)
        if name.startswith("."):
            passed[real] = "hidden"
        elif os.path.isdir(path):  # noqa: PTH112  (Path's raises where a path is too long for the system)
            passed[real] = "linked"
        elif name.lower().endswith(ENDINGS):
            # A link out of the folder is rejected, and must not stand for the file, which may be named as well.
            yield real if Path(real).is_relative_to(root) else f"link {path}", ImageFile(path, root)
        else:
            passed[real] = Path(name).suffix.lower() or "without ending"


def escape_path(path: str) -> str:
    """Escapes a path to one line of text: bytes that are no UTF-8 as \\xff, control characters as \\n, \\ as \\\\."""
    text = path.replace("\\", "\\\\").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return escape_controls(text)


class ImageFileReader:
    """Reads image files after a child process has decoded and survived them; each thread has a child of its own."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._own = threading.local()
        self._opened: list[Quarantine] = []

    def read(self, image_file: ImageFile) -> bytes:
        """Reads exactly the bytes that the child has decoded.

        Raises:
            Rejected: the file is no good image.
            RuntimeError: the child does not start.
        """
        quarantine = self._quarantine(image_file.root)
        for _ in range(_TRIES):
            facts = quarantine.inspect_file(image_file.place)
            if facts["reason"]:
                raise Rejected(facts["reason"])
            data = read_file(image_file.root, image_file.place, self.limits)
            if hashlib.sha256(data).hexdigest() == facts["sha256"]:
                return data
        raise Rejected("unreadable")

    def _quarantine(self, root: Path) -> Quarantine:
        """Returns the thread's own quarantine of a root; files come root by root, so that it is seldom started anew."""
        if getattr(self._own, "root", None) != root:
            if hasattr(self._own, "quarantine"):
                self._own.quarantine.close()
            self._own.quarantine, self._own.root = Quarantine(root, self.limits), root
            self._opened.append(self._own.quarantine)
        quarantine: Quarantine = self._own.quarantine
        return quarantine

    def close(self) -> None:
        """Ends the children; no thread may be reading."""
        for quarantine in self._opened:
            quarantine.close()


def read_image(path: str, colour: Colour = "srgb") -> np.ndarray:
    """Reads one image file to uint8 (H, W, 3), RGB, upright, as `decode_image` does.

    Raises UserError if the file does not exist or cannot be read.
    """
    if Path(path).is_dir():
        raise UserError(f"{escape_path(path)} is a folder: expected one photograph")
    reader = ImageFileReader(LIMITS)
    try:
        return decode_image(reader.read(find_image_files([path])[0][0]), reader.limits, colour).pixels
    except Rejected as error:
        raise UserError(f"{escape_path(path)}: {REASONS[error.reason]}") from error
    finally:
        reader.close()
