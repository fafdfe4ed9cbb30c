"""Weights of SAM-HQ and its detector: found, downloaded once, and known by their sha256.

A SAM-HQ checkpoint is a file of the user's, or the published one; a detector is a folder, or a name on the Hugging Face
hub. What is downloaded stays in the hub's own cache.
"""

from dataclasses import dataclass
from pathlib import Path

from charm.runtime.disk import file_sha256, fingerprint, name_impostor
from charm.runtime.downloads import NAME, fetch
from charm.runtime.errors import UserError

DETECTOR_FILES = ("*.json", "*.safetensors", "*.txt")  # what transformers reads; never pickles or code


@dataclass(frozen=True)
class Published:
    """A file of SAM-HQ's authors: its name on the hub and its sha256."""

    file: str
    sha256: str


# At the commit that completed it; hashes from the Git LFS pointers there.
_REPOSITORY, _REVISION = "lkeab/hq-sam", "a3a77cd0a2e5e50eaa76faccf61b964732d9b35f"
SAM_HQ = {
    "vit_tiny": Published("sam_hq_vit_tiny.pth", "0f32c075ccdd870ae54db2f7630e7a0878ede5a2b06d05d6fe02c65a82fb7196"),
    "vit_b": Published("sam_hq_vit_b.pth", "14a9d662cd6f5a9c2dba6d40ab0058d88d287e4a18fd6fdc6ad5fb1a3fdeaa57"),
    "vit_l": Published("sam_hq_vit_l.pth", "e1a6c385d62bf005ded91a54d5ec55c985cfc4103ef89c08d90f39f04934c343"),
    "vit_h": Published("sam_hq_vit_h.pth", "a7ac14a085326d9fa6199c8c698c4f0e7280afdbb974d2c4660ec60877b45e35"),
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
    published, mend = SAM_HQ[sam], "if it is yours, set sam_sha256 to that"
    if path is None:
        if sha256 not in (None, published.sha256):
            raise UserError(
                f"sam_sha256 is not that of the published {sam}, {published.sha256}: "
                "leave it empty, or name your file in sam_checkpoint"
            )
        by_hand = f"download {published.file} by any other way, and name it in sam_checkpoint"
        path = str(fetch(_REPOSITORY, [published.file], _REVISION, by_hand) / published.file)
        mend = "delete it, and it is downloaded again"
    file = _resolve(path)
    if not file.is_file():
        raise UserError(f"sam_checkpoint: there is no file {path}; empty downloads {published.file}")
    if impostor := name_impostor(file):
        raise UserError(f"sam_checkpoint: {path} is {impostor}")
    found = file_sha256(file)
    if found != (sha256 or published.sha256):
        expected = f"sam_sha256, {sha256}" if sha256 else f"the published {sam}'s; {mend}"
        raise UserError(f"sam_checkpoint: {path} has sha256 {found}, not {expected}")
    return file, found


def find_detector(detector: str) -> tuple[Path, str]:
    """Finds the folder of a detector, here or by its name on the Hugging Face hub; returns it, and one sha256 of all.

    Raises UserError if there is no such folder or name, or no download.
    """
    folder = _resolve(detector)
    if not folder.is_dir():
        if not NAME.fullmatch(detector):
            raise UserError(
                f"detector: there is no folder {detector!r}, and no model of the hub has such a name; "
                "expected for example IDEA-Research/grounding-dino-tiny"
            )
        by_hand = "download its .json, .safetensors and .txt files into a folder, and name it in detector"
        folder = fetch(detector, DETECTOR_FILES, remedy=by_hand)
    files = sorted(file for pattern in DETECTOR_FILES for file in folder.glob(pattern))
    for file in files:
        if file.suffix == ".safetensors" and (impostor := name_impostor(file)):
            raise UserError(f"detector: {file} is {impostor}")
    if not any(file.suffix == ".safetensors" for file in files):
        raise UserError(f"detector: {folder} holds no .safetensors file; expected a detector as transformers saves it")
    return folder, fingerprint({file.name: file_sha256(file) for file in files})


def _resolve(path: str) -> Path:
    """Returns the absolute path, as workers of a cluster may have another working folder."""
    return Path(path).expanduser().resolve()
