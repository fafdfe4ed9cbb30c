"""WebDataset shards with sidecars: written once, read by key.

A shard is a tar of samples, `<key>.<extension>` each, that webdataset.WebDataset and Hugging Face's `datasets` read as
it is. <key>.json has an image's name, its target (0..1, or shares of bins), its split, and the score_range that 0 and 1
stand for. A shard's sidecar, a JSON file of the same name, is written after it and says what a whole shard holds:

    bytes, sha256   of the tar
    images          sha256 of the members but .json: columns depend on it, and not on labels and splits
    count           of the samples
    fingerprint     sha256 of all that the shard was made from
    source          of a column: `images` of the image shard that it belongs to; else null
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
from simplejpeg import encode_jpeg

from charm.images.decode import decode_image
from charm.images.limits import LIMITS, Colour
from charm.images.quarantine import read_file
from charm.images.reasons import Rejected
from charm.runtime.disk import atomic_write, file_sha256
from charm.runtime.errors import UserError
from charm.tokenization.geometry import downscale
from pipeline.shards import AS_IS
from pipeline.work.store import mark_changed, write_record

Sample = dict[str, bytes]

# A dot would end the key for WebDataset, a slash would make a folder; a header has room for 100 characters of both.
_KEY = re.compile(r"[0-9A-Za-z_-]{1,64}")
_EXTENSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.]{0,31}")  # one that begins with _ is WebDataset's own
_HEADER = 512  # bytes, of a member in a tar


def write_shard(target: Path, samples: Iterable[tuple[str, Sample]], source: str | None = None) -> None:
    """Writes target.tar, then target.json; equal samples give equal bytes.

    Args:
        target: path without an ending; its name is the shard's fingerprint.
        samples: (key, extension -> bytes), in order.
        source: of a column, see above.

    Raises:
        ValueError: a key or an extension that is not a plain word, a key that comes twice or has nothing.
    """
    tar_path = target.with_suffix(".tar")
    members: dict[str, dict[str, list[int]]] = {}
    images = hashlib.sha256()
    with atomic_write(tar_path) as file, tarfile.open(fileobj=file, mode="w:", format=tarfile.USTAR_FORMAT) as tar:
        for key, sample in samples:
            if key in members or not _KEY.fullmatch(key) or not sample or not all(map(_EXTENSION.fullmatch, sample)):
                raise ValueError(
                    f"key {key!r} with {list(sample)}: expected letters, digits, - and _, once, with plain extensions"
                )
            members[key] = {}
            for extension, data in sorted(sample.items()):
                members[key][extension] = [tar.offset + _HEADER, len(data), zlib.crc32(data)]
                _add(images, key, extension, data)
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size, member.mode = len(data), 0o444
                tar.addfile(member, io.BytesIO(data))
    # Checksums are of the bytes in memory, the digest is of the bytes on disk.
    written = {"bytes": tar_path.stat().st_size, "sha256": file_sha256(tar_path), "images": images.hexdigest()}
    facts = {"fingerprint": target.name, "source": source, "count": len(members), "members": members}
    write_record(target.with_suffix(".json"), written | facts)


def _add(images: Any, key: str, extension: str, data: bytes) -> None:
    """Adds a member to the digest of a shard's images."""
    if extension != "json":
        images.update(f"{key}.{extension} {len(data)}\n".encode())
        images.update(data)


def describe_tar(tar_path: Path) -> dict[str, Any]:
    """Computes what the sidecar of a tar should say, from the tar alone."""
    members: dict[str, dict[str, list[int]]] = {}
    size, images = tar_path.stat().st_size, hashlib.sha256()
    with open(tar_path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:  # plain: no bombs
        for member in tar:
            key, extension = member.name.split(".", 1)
            if not 0 <= member.size <= size:  # a damaged header may ask for any number of bytes
                raise tarfile.ReadError(f"{member.name} of {member.size} bytes")
            file.seek(member.offset_data)
            data = file.read(member.size)
            members.setdefault(key, {})[extension] = [member.offset_data, member.size, zlib.crc32(data)]
            _add(images, key, extension, data)
    written = {"bytes": size, "sha256": file_sha256(tar_path), "images": images.hexdigest()}
    return written | {"count": len(members), "members": members}


def choose_member(rows: Iterable[dict[str, Any]], encoding: str) -> str:
    """Returns the extension of the images of a data set: their format's, or `jpg` for several.

    Hugging Face's `datasets` takes the extensions of the first samples for those of all, and has no images of the
    others, while decoders go by the bytes.

    The encoding "jpeg" keeps the files' bytes, unless a row of the manifest asks for another size; "raw" stores pixels,
    uint8 (H, W, 3), RGB, so that readers need not decode.
    """
    kinds = {("jpg" if _is_resized(row) else row["extension"], "as_is" in row["notes"]) for row in rows}
    formats = {extension for extension, _ in kinds}
    prefix = AS_IS if any(is_wide for _, is_wide in kinds) else ""
    return "npy" if encoding == "raw" else prefix + (formats.pop() if len(formats) == 1 else "jpg")


def pack_shard(
    rows: list[dict[str, Any]], root: str, member: str, jpeg_quality: int, score_range: list[float], target: Path
) -> None:
    """Writes a shard of the images of some manifest rows, with their labels, by `write_shard`.

    Args:
        root: folder that their paths start from.
        member: as `choose_member` returns it.
        jpeg_quality: of images whose size changes.
        score_range: the scores, of the first and last bin for distributions, that targets of 0 and 1 stand for.
    """

    def pack(row: dict[str, Any]) -> Sample:
        label = {name: row[name] for name in ("name", "target", "split")} | {"score_range": score_range}
        image = _pack_image(row, Path(root), member, jpeg_quality)
        return {member: image, "json": json.dumps(label, sort_keys=True).encode()}

    write_shard(target, ((row["key"], pack(row)) for row in rows))


def _pack_image(row: dict[str, Any], root: Path, member: str, jpeg_quality: int) -> bytes:
    try:
        data = read_file(root, row["path"], LIMITS)
    except Rejected:
        data = b""
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        mark_changed(root, row["path"])
        raise UserError(f"{row['path']} has changed since it was listed: run `dvc repro --force manifest`")
    if member != "npy" and not _is_resized(row):
        return data
    colour: Colour = "as_is" if "as_is" in row["notes"] else "srgb"
    pixels = downscale(decode_image(data, colour=colour).pixels, (row["height"], row["width"]))
    return (
        encode_array(pixels) if member == "npy" else encode_jpeg(pixels, quality=jpeg_quality, colorsubsampling="444")
    )


def _is_resized(row: dict[str, Any]) -> bool:
    return (row["height"], row["width"]) != (row["raw_height"], row["raw_width"])


def encode_array(array: np.ndarray) -> bytes:
    """Encodes an array as the bytes of a file of np.save."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
