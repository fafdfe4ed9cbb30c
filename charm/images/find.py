"""Image files that a user names: finds them, and reads their bytes after a child process has decoded them."""

import hashlib
import os
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from charm.images.decode import decode_image
from charm.images.limits import ENDINGS, LIMITS, Limits
from charm.images.quarantine import Quarantine, read_file
from charm.images.reasons import REASONS, Rejected
from charm.runtime.errors import UserError

_TRIES = 3  # for a file that is written to meanwhile
# Unicode categories: control characters, lone surrogates (bytes that are no UTF-8), line and paragraph separators.
_ESCAPED = {"Cc", "Cs", "Zl", "Zp"}


@dataclass(frozen=True)
class ImageFile:
    """An image file that a user named, or that was found below a named folder.

    Attributes:
        path: as named by the user, or found below a named folder.
        root: the folder that links in the path may not lead out of.
    """

    path: str
    root: Path

    @property
    def place(self) -> str:
        """The absolute path."""
        return str(Path(self.path).absolute())


def find_image_files(paths: Sequence[str]) -> list[ImageFile]:
    """Finds the files at some paths, and those with the ending of an image in or below folders, sorted by name.

    Hidden files and folders, and links to folders, are passed over. A file that comes up twice is taken once. Folders
    that cannot be read, and links that lead out of their folder, are listed to be rejected: nothing gets lost.

    Raises:
        UserError: a path does not exist, or no path leads to an image.
    """
    found: dict[str, ImageFile] = {}
    for path in paths:
        if Path(path).is_dir():
            for real, image_file in _walk(path, Path(path).resolve()):
                if real not in found or Path(found[real].path).is_symlink():  # its own name is better than a link's
                    found[real] = image_file
        elif os.path.lexists(path):
            found.setdefault(os.path.realpath(path), ImageFile(path, Path(Path(path).absolute().anchor)))
        else:
            raise UserError(f"{escape_path(path)}: there is no such file or folder")
    if not found:
        places = ", ".join(map(escape_path, paths))
        raise UserError(f"no photographs in {places}: looked for files that end in {' '.join(ENDINGS)}, large or small")
    return list(found.values())


def _walk(folder: str, root: Path) -> Iterator[tuple[str, ImageFile]]:
    """Yields (identity, image file) of a folder in order of names; equal identities are one file."""
    try:
        with os.scandir(folder) as entries:
            inside = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda one: one.name)
    except OSError:  # the folder is listed, to be reported with the files that cannot be opened
        yield folder, ImageFile(folder, root)
        return
    for entry in inside:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, root)
        elif entry.name.lower().endswith(ENDINGS) and not entry.is_dir():
            real = os.path.realpath(entry.path)
            # A link out of the folder is rejected, and must not stand for the file, which may be named as well.
            yield real if Path(real).is_relative_to(root) else f"link {entry.path}", ImageFile(entry.path, root)


def escape_path(path: str) -> str:
    """Escapes a path to one line of text: bytes that are no UTF-8 as \\xff, control characters as \\n, \\ as \\\\."""
    text = path.replace("\\", "\\\\").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _ESCAPED else char for char in text
    )


class ImageFileReader:
    """Reads image files after a child process has decoded and survived them; each thread has a child of its own.

    Args:
        limits: of a file.
    """

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


def read_image(path: str) -> np.ndarray:
    """Reads one image file to uint8 (H, W, 3), RGB, upright.

    Raises:
        UserError: the file does not exist or cannot be read.
    """
    if Path(path).is_dir():
        raise UserError(f"{escape_path(path)} is a folder: expected one photograph")
    reader = ImageFileReader(LIMITS)
    try:
        return decode_image(reader.read(find_image_files([path])[0]), reader.limits).pixels
    except Rejected as error:
        raise UserError(f"{escape_path(path)}: {REASONS[error.reason]}") from error
    finally:
        reader.close()
