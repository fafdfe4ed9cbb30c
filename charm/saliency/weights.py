"""Weights of SAM-HQ and Grounding DINO: found, downloaded once, and known by their sha256.

A SAM-HQ checkpoint is a file of the user's, or the published one, which is downloaded on first use into
$XDG_CACHE_HOME/charm or ~/.cache/charm; a detector is a folder, or a name on the Hugging Face hub, whose own cache
holds it. $HF_ENDPOINT names another hub.
"""

import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from charm.runtime.disk import file_sha256, fingerprint, lock_file, name_impostor
from charm.runtime.errors import UserError, first_line
from charm.runtime.waiting import hub_address, reach_hub

ATTEMPTS = 5  # connections that a download may take; each goes on where the last was cut
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20  # bytes
DETECTOR_FILES = ("*.json", "*.safetensors", "*.txt")  # what transformers reads; never pickles or code


@dataclass(frozen=True)
class Published:
    """A file of SAM-HQ's authors: its name on the hub, its sha256, its size in bytes."""

    file: str
    sha256: str
    size: int


# huggingface.co/lkeab/hq-sam at the commit that completed it; hashes and sizes from the Git LFS pointers there.
_REPOSITORY = "lkeab/hq-sam/resolve/a3a77cd0a2e5e50eaa76faccf61b964732d9b35f"
SAM_HQ = {
    "vit_tiny": Published(
        "sam_hq_vit_tiny.pth", "0f32c075ccdd870ae54db2f7630e7a0878ede5a2b06d05d6fe02c65a82fb7196", 42_526_881
    ),
    "vit_b": Published(
        "sam_hq_vit_b.pth", "14a9d662cd6f5a9c2dba6d40ab0058d88d287e4a18fd6fdc6ad5fb1a3fdeaa57", 379_335_069
    ),
    "vit_l": Published(
        "sam_hq_vit_l.pth", "e1a6c385d62bf005ded91a54d5ec55c985cfc4103ef89c08d90f39f04934c343", 1_254_865_805
    ),
    "vit_h": Published(
        "sam_hq_vit_h.pth", "a7ac14a085326d9fa6199c8c698c4f0e7280afdbb974d2c4660ec60877b45e35", 2_570_940_653
    ),
}


def find_checkpoint(sam: str, path: str | None, sha256: str | None) -> tuple[Path, str]:
    """Finds the checkpoint of a SAM-HQ model; returns its path and sha256.

    Args:
        sam: a key of SAM_HQ.
        path: of a file; None takes the published file, downloaded if need be.
        sha256: required of the file at `path`; None requires that of the published file.

    Raises:
        UserError: there is no such file, it has another sha256, or it cannot be downloaded.
    """
    published = SAM_HQ[sam]
    if path is None:
        if sha256 not in (None, published.sha256):
            raise UserError(
                f"sam_sha256 is not that of the published {sam}, {published.sha256}: "
                "leave it empty, or name your file in sam_checkpoint"
            )
        return _fetch_published(published), published.sha256
    file = _resolve(path)
    if not file.is_file():
        raise UserError(f"sam_checkpoint: there is no file {path}; empty downloads {published.file}")
    if impostor := name_impostor(file):
        raise UserError(f"sam_checkpoint: {path} is {impostor}")
    found = file_sha256(file)
    if found != (sha256 or published.sha256):
        expected = (
            f"sam_sha256, {sha256}" if sha256 else f"the published {sam}'s; if it is yours, set sam_sha256 to that"
        )
        raise UserError(f"sam_checkpoint: {path} has sha256 {found}, not {expected}")
    return file, found


def find_detector(detector: str) -> tuple[Path, str]:
    """Finds the folder of a Grounding DINO; returns its path and one sha256 of all its files.

    Args:
        detector: a folder, or a name on the Hugging Face hub, of which safetensors are downloaded if need be.

    Raises:
        UserError: there is no such folder or name, or no download.
    """
    folder = _resolve(detector)
    if not folder.is_dir():
        folder = _fetch_detector(detector)
    files = sorted(file for pattern in DETECTOR_FILES for file in folder.glob(pattern))
    for file in files:
        if file.suffix == ".safetensors" and (impostor := name_impostor(file)):
            raise UserError(f"detector: {file} is {impostor}")
    if not any(file.suffix == ".safetensors" for file in files):
        raise UserError(f"detector: {folder} holds no .safetensors file; expected a Grounding DINO")
    return folder, fingerprint({file.name: file_sha256(file) for file in files})


def _resolve(path: str) -> Path:
    """Returns the absolute path, as workers of a cluster may have another working folder."""
    return Path(path).expanduser().resolve()


def cache_folder() -> Path:
    """Returns the folder that keeps downloads: $XDG_CACHE_HOME/charm or ~/.cache/charm."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "charm"


def _fetch_published(published: Published) -> Path:
    target = cache_folder() / published.file
    target.parent.mkdir(parents=True, exist_ok=True)
    # Held until the file is there: a second downloader waits, then finds it.
    with open(target.with_suffix(".lock"), "w") as lock:
        if not lock_file(lock, wait=False):
            print(f"waiting for another process that downloads {target}", flush=True)
            lock_file(lock)
        if not target.is_file() or file_sha256(target) != published.sha256:
            download(f"{hub_address()}/{_REPOSITORY}/{published.file}", target, published)
    return target


def download(url: str, target: Path, published: Published) -> None:
    """Downloads a file whole or not at all; a download that is cut is kept beside it, as .part, and continued.

    Raises:
        UserError: there is no connection or no such file, or the file has another sha256.
    """
    part = target.with_suffix(".part")
    print(f"downloading {url} ({published.size / 1e6:.0f} MB) to {target.parent}", flush=True)
    by_hand = f"download it by any other way and put it at {target}, or name it in sam_checkpoint"
    if missing := reach_hub():
        raise UserError(f"cannot download {url} ({missing}): {by_hand}")
    for attempt in range(ATTEMPTS):
        try:
            _append(url, part)
        except (OSError, HTTPException) as error:  # no network, a cut, a timeout
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if refused or attempt == ATTEMPTS - 1:
                raise UserError(f"cannot download {url} ({error}): {by_hand}") from error
            continue
        if impostor := name_impostor(part):  # of a network that wants a login
            part.unlink()
            raise UserError(f"{url} is {impostor}; or {by_hand}")
        if part.stat().st_size >= published.size:
            break
    found = part.stat().st_size
    if found < published.size:
        raise UserError(
            f"{url} was cut {ATTEMPTS} times, {found} of {published.size} bytes are kept: the same command goes on, "
            f"or {by_hand}"
        )
    if (sha256 := file_sha256(part)) != published.sha256:
        part.unlink()
        raise UserError(f"{url} has sha256 {sha256}, expected {published.sha256}: it is another file; {by_hand}")
    os.replace(part, target)


def _append(url: str, part: Path) -> None:
    """Appends the missing rest of a file to its part; starts anew if the server does not support ranges."""
    with open(part, "ab") as file:
        start = file.tell()
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        try:
            response = urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 416:
                raise
            return  # the range is empty: the part is whole, or of another file, which its sha256 will tell
        with response:
            if start and not re.match(rf"bytes {start}-", response.headers.get("Content-Range") or ""):
                file.truncate(0)
            while chunk := response.read(CHUNK):
                file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _fetch_detector(name: str) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(
            f"detector: there is no folder {name!r}, and no model of the hub has such a name; "
            "expected for example IDEA-Research/grounding-dino-tiny"
        )
    from huggingface_hub import snapshot_download

    missing = reach_hub()
    try:
        return Path(snapshot_download(name, allow_patterns=list(DETECTOR_FILES), endpoint=hub_address()))
    except Exception as error:  # the hub's client raises some twenty kinds, of httpx and of its own
        raise UserError(
            f"cannot download {hub_address()}/{name} ({missing or first_line(error)}): download its .json, "
            ".safetensors and .txt files by any other way into a folder, and name it in detector"
        ) from error
