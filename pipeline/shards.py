"""WebDataset shards with sidecars: written once, read by key.

A shard is a tar of samples, `<key>.<extension>` each, that webdataset.WebDataset reads as it is. Its sidecar, a JSON
file of the same name, is written after it and says what a whole shard holds:

    bytes, sha256   of the tar
    members         key -> extension -> [offset, bytes, crc32]

A tar without a valid sidecar does not exist, and every read is checked against it: a tar that was cut or damaged cannot
pass for a shorter one.
"""

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from pipeline.errors import UserError
from pipeline.images import Rejected, decode_image
from pipeline.store import read_sidecar, write_json, write_whole

Sample = dict[str, bytes]


def write_shard(target: Path, samples: Iterable[tuple[str, Sample]]) -> None:
    """Writes target.tar, then target.json. Equal samples give equal bytes.

    Args:
        samples: (key, extension -> bytes), in order. Keys have no dots, which would end the key for WebDataset.
    """
    from webdataset import TarWriter

    tar_path = target.with_suffix(".tar")
    with write_whole(tar_path) as file, TarWriter(file, encoder=False, mtime=0) as writer:
        for key, sample in samples:
            writer.write({"__key__": key, **sample})
    write_json(target.with_suffix(".json"), _describe_tar(tar_path))


def _describe_tar(tar_path: Path) -> dict[str, Any]:
    data = tar_path.read_bytes()
    members: dict[str, dict[str, list[int]]] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            key, extension = member.name.split(".", 1)
            start = member.offset_data
            crc = zlib.crc32(memoryview(data)[start : start + member.size])
            members.setdefault(key, {})[extension] = [start, member.size, crc]
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "members": members}


def pack_shard(rows: list[dict[str, Any]], root: str, jpeg_quality: int, target: Path) -> None:
    """The pictures of some manifest rows with their labels; bytes untouched unless the row asks for another size."""
    write_shard(target, ((row["key"], _pack_sample(row, Path(root), jpeg_quality)) for row in rows))


def _pack_sample(row: dict[str, Any], root: Path, jpeg_quality: int) -> Sample:
    path = root / row["path"]
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise UserError(f"{row['path']} has changed since it was listed: run `dvc repro --force manifest`")
    extension = row["extension"]
    if (row["height"], row["width"]) != (row["raw_height"], row["raw_width"]):
        size = (row["width"], row["height"])
        pixels = cv2.resize(decode_image(data).pixels, size, interpolation=cv2.INTER_AREA)
        data = simplejpeg.encode_jpeg(pixels, quality=jpeg_quality, colorsubsampling="444")
        extension = "jpg"
    label = {"name": row["name"], "target": row["target"]}
    return {extension: data, "json": json.dumps(label, sort_keys=True).encode()}


def read_shard_sidecars(folder: Path, shard: str = "shard-*") -> dict[str, dict[str, Any]]:
    """The sidecar of each shard in a folder, by the shard's name, in order.

    Raises:
        UserError: a tar is missing, or not as long as its sidecar says.
    """
    found = {}
    for path in sorted(folder.glob(f"{shard}.json")):
        sidecar = read_sidecar(path)
        if sidecar is None or not sidecar.keys() >= {"bytes", "members"}:
            raise UserError(f"{path.with_suffix('.tar')}: missing, or not what its sidecar says; run dvc repro")
        found[path.stem] = sidecar
    return found


class ShardReader:
    """Reads members by key from a folder of shards. Can be handed to worker processes.

    Args:
        folder: of shards with their sidecars.
        shard: read this one alone.
    """

    def __init__(self, folder: Path, shard: str = "shard-*") -> None:
        self.folder = folder
        self._where: dict[str, tuple[str, dict[str, list[int]]]] = {}
        for name, sidecar in read_shard_sidecars(folder, shard).items():
            for key, members in sidecar["members"].items():
                if key in self._where:
                    raise UserError(f"{folder}: {key} is in {self._where[key][0]} and in {name}; run dvc repro --force")
                self._where[key] = (name, members)

    def __contains__(self, key: str) -> bool:
        return key in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def shard_of(self, key: str) -> str:
        return self._where[key][0]

    def extensions(self, key: str) -> list[str]:
        return list(self._where[key][1])

    def read(self, key: str, extension: str) -> bytes:
        """Raises UserError where the bytes are not those that were written."""
        shard, members = self._where[key]
        offset, size, crc = members[extension]
        # Opened for each read: 10 microseconds, where keeping them open would need a descriptor per shard.
        with open(self.folder / f"{shard}.tar", "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, offset)
        if len(data) != size or zlib.crc32(data) != crc:
            raise UserError(f"{self.folder / shard}.tar: {key}.{extension} is damaged; remove it and run dvc repro")
        return data

    def read_picture(self, key: str) -> np.ndarray:
        """uint8 (H, W, 3), RGB."""
        extension = next(extension for extension in self.extensions(key) if extension != "json")
        try:
            return decode_image(self.read(key, extension)).pixels
        except Rejected as error:
            raise UserError(f"{self.folder / self.shard_of(key)}.tar: {key}.{extension}: {error}") from error
