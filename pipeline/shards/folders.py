"""Folders of shards: on a disk, or elsewhere by fsspec (s3://, gs://, https://), read in parts."""

import fnmatch
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from charm.runtime.errors import UserError, first_line
from charm.runtime.waiting import within
from pipeline.work.store import remake

_PATIENCE = 60.0  # seconds, for an answer; libraries try again meanwhile
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # of pyproject.toml, by the protocol that they bring


class LocalFolder:
    """A folder on a disk; may be handed to worker processes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def remedy(self, name: str) -> str:
        """Says what to do about a damaged file."""
        return remake(self._path / name)

    def list_sizes(self, pattern: str) -> dict[str, int | None]:
        """Returns the size in bytes of each file that matches, by name; None if the size is not known."""
        with os.scandir(self._path) as entries:
            return {one.name: one.stat().st_size for one in entries if fnmatch.fnmatch(one.name, pattern)}

    def read_files(self, names: list[str]) -> list[bytes]:
        """Reads whole files, in the order of `names`."""
        return [(self._path / name).read_bytes() for name in names]

    def read_part(self, name: str, offset: int, size: int) -> bytes:
        """Reads `size` bytes from an offset on; fewer at the end of the file."""
        # Opened for each read: 10 microseconds, where keeping them open would need a descriptor per shard.
        with open(self._path / name, "rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)


class RemoteFolder:
    """A folder at an address that fsspec knows; may be handed to worker processes. Each read is one request."""

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        self._opened: tuple[int, Any, str] | None = None

    def __str__(self) -> str:
        return self._address

    def __getstate__(self) -> dict[str, Any]:
        return {"_address": self._address, "_opened": None}

    def remedy(self, name: str) -> str:
        return "copy it there again"

    def list_sizes(self, pattern: str) -> dict[str, int | None]:
        entries = self._ask(lambda files, root: files.ls(root, detail=True))  # s3fs and gcsfs give names alone, else
        sizes = {entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry.get("size") for entry in entries}
        return {name: size for name, size in sizes.items() if fnmatch.fnmatch(name, pattern)}

    def read_files(self, names: list[str]) -> list[bytes]:
        def read(files: Any, root: str) -> list[bytes]:
            paths = [f"{root}/{name}" for name in names]
            found = files.cat(paths) if paths else {}  # many at once, where the file system can
            return [found[path] if isinstance(found, dict) else found for path in paths]

        found: list[bytes] = self._ask(read)
        return found

    def read_part(self, name: str, offset: int, size: int) -> bytes:
        data: bytes = self._ask(lambda files, root: files.cat_file(f"{root}/{name}", start=offset, end=offset + size))
        return data

    def _ask(self, work: Callable[[Any, str], Any]) -> Any:
        """Returns what the file system answers to work(files, root).

        Raises:
            UserError: the address cannot be opened.
            OSError: another error, of the many kinds that libraries have, or no answer in time.
        """
        files, root = self._open()
        try:
            return within(_PATIENCE, lambda: work(files, root))
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {first_line(error)}") from error

    def _open(self) -> tuple[Any, str]:
        """Returns the file system and the folder's path; opens anew in each process, as connections survive no fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            import fsspec

            try:
                files, root = fsspec.core.url_to_fs(self._address, skip_instance_cache=True)
            except ImportError as error:
                extra = _EXTRAS.get(self._address.partition("://")[0])
                remedy = f"uv sync --extra {extra}" if extra else f"{error}"
                raise UserError(f"{self._address} needs a package that is not installed: {remedy}") from error
            except Exception as error:  # a protocol that nobody knows, that needs a package, or something else
                raise UserError(f"{self._address} cannot be opened: {error}") from error
            self._opened = (os.getpid(), files, root)
        return self._opened[1:]


Folder = LocalFolder | RemoteFolder


def open_folder(place: Path | str) -> Folder:
    """Returns the folder at a path, or at an address with a protocol."""
    return RemoteFolder(place) if isinstance(place, str) and "://" in place else LocalFolder(Path(place))
