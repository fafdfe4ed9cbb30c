"""The root folder of a listing: images in it that no label lists, and what is near a listed file that is missing."""

import os
import unicodedata
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

from charm.images.find import escape_path
from charm.images.limits import ENDINGS
from charm.images.reasons import REASONS

_MOST_FILES = 1_000_000  # that are looked at: a root may be a home folder
_MOST_HINTS = 1000  # files that are looked for; if more are missing, they are missing for one reason


def _without_ending(path: str) -> str:
    return next((path[: -len(ending)] for ending in ENDINGS if path.lower().endswith(ending)), path)


# In what the path of a label often differs from that of its file -> removes that from a path.
_DIFFERENCES: dict[str, Callable[[str], str]] = {
    "back-slashes": lambda path: path.replace("\\", "/"),
    "blanks": lambda path: "/".join(part.strip() for part in path.split("/")),
    "Unicode form (NFC, NFD)": lambda path: unicodedata.normalize("NFC", path),
    "large and small letters": str.casefold,
    "ending": _without_ending,
    "folder": lambda path: path.rpartition("/")[2],
}


class RootFolder:
    """The files below the folder that a listing's paths start from; hidden ones and linked folders are passed over."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._files: list[str] = []
        # All of a disk is not looked through.
        folders = [""] if self._root.parent != self._root else []
        while folders and len(self._files) < _MOST_FILES:
            folder = folders.pop()
            try:
                with os.scandir(self._root / folder) as entries:
                    inside = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
            except OSError:  # its images, if they are listed, are rejected for it
                continue
            for entry in inside:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                else:
                    self._files.append(path)

    def find_unlisted(self, paths: list[str]) -> list[str]:
        """Returns the files with the ending of an image that are at none of these paths, sorted."""
        root = os.path.normpath(self._root)
        listed = {os.path.normpath(f"{root}/{path}" if path[:1] != "/" else path) for path in paths}
        images = (file for file in self._files if file.lower().endswith(ENDINGS))
        return sorted(file for file in images if f"{root}/{file}" not in listed)

    def explain(self, reasons: dict[str, str]) -> dict[str, str]:
        """Says by path where files that are missing or outside, by `reasons`, were looked for, and what is near."""
        root = f"{self._root} (manifest.root)"
        missing = f"{REASONS['missing']} in {root}" if self._root.is_dir() else f"there is no folder {root}"
        words = {"missing": missing, "outside": f"{REASONS['outside']} {root}"}
        near = self._find_near([path for path, reason in reasons.items() if reason == "missing"][:_MOST_HINTS])
        return {path: words[reason] + near.get(path, "") for path, reason in reasons.items() if reason in words}

    def _find_near(self, missing: list[str]) -> dict[str, str]:
        """Returns path -> hint, for paths of which another root or a file that is much alike is found."""
        alike: dict[str, list[str]] = {}
        if missing:
            for file in self._files:
                alike.setdefault(_strip(file, tuple(_DIFFERENCES)), []).append(file)
        hints = {}
        for path in missing:
            near = alike.get(_strip(path, tuple(_DIFFERENCES)), [])
            inside = [file for file in near if file.endswith("/" + os.path.normpath(path))]
            roots = [self._root / file.removesuffix(os.path.normpath(path)) for file in inside]
            roots += [folder for folder in (*self._root.parents, Path.cwd()) if os.path.lexists(folder / path)]
            if roots:
                hints[path] = f"; it is there with manifest.root: {roots[0]}"
            elif near:
                file, names = min(((file, _compare(path, file)) for file in near), key=lambda one: len(one[1]))
                hints[path] = f"; there is {escape_path(file)}, which differs in its {' and '.join(names)}"
        return hints


def _strip(path: str, names: tuple[str, ...]) -> str:
    """Returns a path without these differences."""
    path = os.path.normpath(path)
    for name in names:
        path = _DIFFERENCES[name](path)
    return path


def _compare(path: str, file: str) -> tuple[str, ...]:
    """Names the fewest differences without which the paths are equal; all of them make them so."""
    sets = (names for count in range(1, len(_DIFFERENCES) + 1) for names in combinations(_DIFFERENCES, count))
    return next(names for names in sets if _strip(path, names) == _strip(file, names))
