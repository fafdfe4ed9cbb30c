"""Reads members of shards (format: pipeline.shards.write) by key: in any order, from any process."""

import fnmatch
import io
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from charm.images.decode import decode_image
from charm.images.limits import FORMATS
from charm.images.reasons import Rejected
from charm.runtime.errors import UserError
from pipeline.shards import AS_IS
from pipeline.shards.folders import Folder, open_folder
from pipeline.work.store import parse_record

_RAW = "npy"
_IMAGES = frozenset({*FORMATS, _RAW})
_AT_ONCE = 64  # sidecars read together: in a remote folder each read is a round trip


def read_shard_sidecars(folder: Folder, shard: str = "shard-*") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name, sidecar) of each shard in a folder, in order.

    Raises:
        UserError: a sidecar is damaged; a tar is missing, or not as long as its sidecar says.
    """
    try:
        sizes = folder.list_sizes(f"{shard}.*")
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error}); run dvc repro") from error
    names = sorted(file.removesuffix(".json") for file in fnmatch.filter(sizes, f"{shard}.json"))
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        for name, data in zip(some, folder.read_files([f"{name}.json" for name in some]), strict=True):
            try:
                sidecar = parse_record(data)
                expected = int(sidecar["bytes"])
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(f"{folder}/{name}.json: damaged ({error}); {folder.remedy(f'{name}.json')}") from error
            if sizes.get(f"{name}.tar", -1) not in (expected, None):
                tar = f"{name}.tar"
                raise UserError(f"{folder}/{tar}: missing, or not what its sidecar says; {folder.remedy(tar)}")
            yield name, sidecar


class ShardReader:
    """A folder of shards as one collection of samples; can be handed to worker processes.

    The index takes some 50 bytes a sample, in arrays that forked processes share.

    Args:
        folder: of shards with their sidecars, or its address (see pipeline.shards.folders).
        shard: read this one alone.

    Raises:
        UserError: a shard is damaged, or a key is in two of them.
    """

    def __init__(self, folder: Path | str, shard: str = "shard-*") -> None:
        self.folder = open_folder(folder)
        self.shards: dict[str, str] = {}  # name -> sha256 of its tar, in order
        self.images: dict[str, str] = {}  # name -> sha256 of its images
        self.sources: dict[str, str | None] = {}  # name -> `source` of its sidecar
        keys: list[bytes] = []
        shard_of, first = array("i"), array("q")
        extensions: dict[str, int] = {}
        kinds, offsets, sizes, crcs = array("H"), array("q"), array("q"), array("L")
        for name, sidecar in read_shard_sidecars(self.folder, shard):
            try:
                for key, members in sidecar["members"].items():
                    keys.append(key.encode("ascii"))
                    shard_of.append(len(self.shards))
                    first.append(len(kinds))
                    for extension, (offset, size, crc) in members.items():
                        if not 0 <= offset <= offset + size <= sidecar["bytes"]:
                            raise ValueError(f"{key}.{extension} is not within the tar")
                        kinds.append(extensions.setdefault(extension, len(extensions)))
                        offsets.append(offset)
                        sizes.append(size)
                        crcs.append(crc)
                self.shards[name], self.images[name] = sidecar["sha256"], sidecar["images"]
                self.sources[name] = sidecar["source"]
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
                path = f"{self.folder}/{name}.json"
                raise UserError(f"{path}: not what this version writes ({error!r}); run dvc repro") from error
        first.append(len(kinds))
        self._names: list[str] = list(self.shards)
        self._extensions: list[str] = list(extensions)
        self._keys = np.array(keys, dtype=bytes)
        self._order = np.argsort(self._keys, kind="stable")
        self._sorted_keys = self._keys[self._order]
        self._shard_of, self._first = np.array(shard_of), np.array(first)
        self._kinds, self._offsets, self._sizes = np.array(kinds), np.array(offsets), np.array(sizes)
        self._crcs = np.array(crcs, np.uint32)
        self._checked = np.zeros(len(kinds), bool)
        twice = np.flatnonzero(self._sorted_keys[1:] == self._sorted_keys[:-1])
        if len(twice):
            key = self._sorted_keys[twice[0]].decode()
            places = self._shard_of[self._keys == self._sorted_keys[twice[0]]]
            both = " and in ".join(self._names[place] for place in places[:2])
            raise UserError(f"{folder}: {key} is in {both}; run dvc repro --force")

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: str) -> bool:
        return self._find(key) is not None

    def __iter__(self) -> Iterator[str]:
        return (key.decode() for key in self._keys)

    def _find(self, key: str) -> int | None:
        place = int(np.searchsorted(self._sorted_keys, key.encode()))
        if place < len(self) and self._sorted_keys[place] == key.encode():
            return int(self._order[place])
        return None

    def _index(self, key: str) -> int:
        index = self._find(key)
        if index is None:
            raise KeyError(f"{self.folder} has no {key}")
        return index

    def is_parallel_to(self, other: "ShardReader") -> bool:
        """Tells whether another folder has the same keys, in the same order, in shards of the same names."""
        return (
            self._names == other._names
            and np.array_equal(self._keys, other._keys)
            and np.array_equal(self._shard_of, other._shard_of)
        )

    def shard_of(self, key: str) -> str:
        return self._names[int(self._shard_of[self._index(key)])]

    def keys_of(self, shard: str) -> list[str]:
        """Lists the keys of a shard, in order."""
        found: np.ndarray = self._keys[self._shard_of == self._names.index(shard)]
        return [key.decode() for key in found]

    def extensions(self, key: str) -> list[str]:
        index = self._index(key)
        return [self._extensions[kind] for kind in self._kinds[self._first[index] : self._first[index + 1]]]

    def read(self, key: str, extension: str) -> bytes:
        """Reads the bytes of a member, checked the first time; UserError if they are not those that were written."""
        index = self._index(key)
        member = int(self._first[index]) + self.extensions(key).index(extension)
        tar = f"{self._names[self._shard_of[index]]}.tar"
        size = int(self._sizes[member])
        try:
            data = self.folder.read_part(tar, int(self._offsets[member]), size)
        except OSError as error:
            raise UserError(f"{self.folder}/{tar}: {key}.{extension} cannot be read: {error}") from error
        # A checksum takes 0.8 ms for the 2.4 MB of a raw image, as long as cutting it into tokens.
        if len(data) != size or not (self._checked[member] or zlib.crc32(data) == self._crcs[member]):
            raise UserError(f"{self.folder}/{tar}: {key}.{extension} is damaged; {self.folder.remedy(tar)}")
        self._checked[member] = True
        return data

    def read_image(self, key: str) -> np.ndarray:
        """Reads an image, uint8 (H, W, 3), RGB; read-only where the shard holds pixels."""
        extension = next(
            (extension for extension in self.extensions(key) if extension.removeprefix(AS_IS) in _IMAGES), None
        )
        if extension is None:
            raise UserError(f"{self.folder}/{self.shard_of(key)}.tar: {key} holds no image")
        data = self.read(key, extension)
        try:
            if extension == _RAW:
                return decode_array(data)
            return decode_image(data, colour="as_is" if extension.startswith(AS_IS) else "srgb").pixels
        except (Rejected, ValueError) as error:
            raise UserError(f"{self.folder}/{self.shard_of(key)}.tar: {key}.{extension}: {error}") from error


def decode_array(data: bytes) -> np.ndarray:
    """Decodes an array of numbers from the bytes of np.save, read-only, not copied; ValueError of others."""
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("expected version 1.0 of numpy's format")
    try:
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # numpy's parser raises many kinds
        raise ValueError(f"not a header of an array ({type(error).__name__})") from None
    if dtype.hasobject or fortran_order:
        raise ValueError(f"an array of {dtype}, Fortran order {fortran_order}: expected numbers, rows first")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape)
