"""WebDataset shards with sidecars: written once, read by key.

A shard is a tar of samples, `<key>.<extension>` each, that webdataset.WebDataset reads as it is. Its sidecar, a JSON
file of the same name, is written after it and says what a whole shard holds:

    bytes, sha256   of the tar
    count           of the samples
    fingerprint     sha256 of all that the shard was made from
    source          of a column: sha256 of the image shard that it belongs to; else null
    members         key -> extension -> [offset, bytes, crc32]

A tar without a valid sidecar does not exist, and bytes are checked against the sidecar when they are read: a tar that
was cut or damaged cannot pass for a shorter one.
"""

import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from charm.images.decode import decode_image
from charm.images.limits import Colour
from charm.runtime.disk import atomic_write, file_sha256
from charm.runtime.errors import UserError
from charm.tokenization.geometry import downscale
from pipeline.shards import AS_IS
from pipeline.work.store import mark_changed, write_record

Sample = dict[str, bytes]

# A dot would end the key for WebDataset, a slash would make a folder; a header has room for 100 characters of both.
_KEY = re.compile(r"[0-9A-Za-z_-]{1,64}")
_EXTENSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.]{0,31}")  # TarWriter leaves out extensions that begin with _
_BLOCK = 512  # bytes; of a header in a tar, and the multiple that members are padded to


def write_shard(target: Path, samples: Iterable[tuple[str, Sample]], source: str | None = None) -> None:
    """Writes target.tar, then target.json; equal samples give equal bytes.

    Args:
        target: path without an ending; its name is the shard's fingerprint.
        samples: (key, extension -> bytes), in order.
        source: of a column, see above.

    Raises:
        ValueError: a key or an extension that is not a plain word, a key that comes twice or has nothing.
    """
    from webdataset import TarWriter

    tar_path = target.with_suffix(".tar")
    members: dict[str, dict[str, list[int]]] = {}
    with atomic_write(tar_path) as file, TarWriter(file, encoder=False, mtime=0) as writer:
        for key, sample in samples:
            if key in members or not _KEY.fullmatch(key) or not sample or not all(map(_EXTENSION.fullmatch, sample)):
                raise ValueError(
                    f"key {key!r} with {list(sample)}: expected letters, digits, - and _, once, with plain extensions"
                )
            place = writer.tarstream.offset
            members[key] = {}
            for extension in sorted(sample):  # as TarWriter writes them
                data = sample[extension]
                members[key][extension] = [place + _BLOCK, len(data), zlib.crc32(data)]
                place += _BLOCK + -(-len(data) // _BLOCK) * _BLOCK
            writer.write({"__key__": key, **sample})
            assert writer.tarstream.offset == place
    # Checksums are of the bytes in memory, the digest is of the bytes on disk.
    written = {"bytes": tar_path.stat().st_size, "sha256": file_sha256(tar_path)}
    facts = {"fingerprint": target.name, "source": source, "count": len(members), "members": members}
    write_record(target.with_suffix(".json"), written | facts)


def describe_tar(tar_path: Path) -> dict[str, Any]:
    """Computes what the sidecar of a tar should say, from the tar alone."""
    members: dict[str, dict[str, list[int]]] = {}
    size = tar_path.stat().st_size
    with open(tar_path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:  # plain: no bombs
        for member in tar:
            key, extension = member.name.split(".", 1)
            if not 0 <= member.size <= size:  # a damaged header may ask for any number of bytes
                raise tarfile.ReadError(f"{member.name} of {member.size} bytes")
            file.seek(member.offset_data)
            crc = zlib.crc32(file.read(member.size))
            members.setdefault(key, {})[extension] = [member.offset_data, member.size, crc]
    written = {"bytes": size, "sha256": file_sha256(tar_path)}
    return written | {"count": len(members), "members": members}


def pack_shard(rows: list[dict[str, Any]], root: str, encoding: str, jpeg_quality: int, target: Path) -> None:
    """Writes a shard of the images of some manifest rows, with their labels.

    Args:
        rows: of the manifest.
        root: folder that their paths start from.
        encoding: "jpeg" keeps the files' bytes, unless a row asks for another size; "raw" stores pixels,
            <key>.npy, uint8 (H, W, 3), RGB, so that readers need not decode. Bytes whose wide colours shall not become
            sRGB (a row's note `as_is`) are <key>.asis.<extension>.
        jpeg_quality: of images whose size changes.
        target: see write_shard.
    """
    write_shard(target, ((row["key"], _pack_sample(row, Path(root), encoding, jpeg_quality)) for row in rows))


def _pack_sample(row: dict[str, Any], root: Path, encoding: str, jpeg_quality: int) -> Sample:
    path = root / row["path"]
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        mark_changed(root, row["path"])
        raise UserError(f"{row['path']} has changed since it was listed: run `dvc repro --force manifest`")
    label = json.dumps({"name": row["name"], "target": row["target"]}, sort_keys=True).encode()
    resized = (row["height"], row["width"]) != (row["raw_height"], row["raw_width"])
    colour: Colour = "as_is" if "as_is" in row["notes"] else "srgb"
    if encoding == "jpeg" and not resized:
        return {(AS_IS if colour == "as_is" else "") + row["extension"]: data, "json": label}
    pixels = downscale(decode_image(data, colour=colour).pixels, (row["height"], row["width"]))
    if encoding == "jpeg":
        return {"jpg": simplejpeg.encode_jpeg(pixels, quality=jpeg_quality, colorsubsampling="444"), "json": label}
    return {"npy": encode_array(pixels), "json": label}


def encode_array(array: np.ndarray) -> bytes:
    """Encodes an array as the bytes of a file of np.save."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
