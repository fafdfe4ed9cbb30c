"""The formats that are read, and the limits of an image file. Reasons, help texts and the page use these."""

from dataclasses import dataclass
from typing import Annotated

from charm.runtime.schema import Range


@dataclass(frozen=True)
class Format:
    """name: for people; media_type: in HTTP; endings: of files' names, lower case."""

    name: str
    media_type: str
    endings: tuple[str, ...]


# By the extension that a file of this format has in shards.
FORMATS = {
    "jpg": Format("JPEG", "image/jpeg", (".jpg", ".jpeg", ".jfif", ".mpo")),
    "png": Format("PNG", "image/png", (".png",)),
    "webp": Format("WebP", "image/webp", (".webp",)),
    "bmp": Format("BMP", "image/bmp", (".bmp",)),
    "tif": Format("TIFF", "image/tiff", (".tif", ".tiff")),
}
ENDINGS = tuple(ending for one in FORMATS.values() for ending in one.endings)


@dataclass(frozen=True)
class Limits:
    """Limits of an image file, checked before any of its pixels is decoded."""

    max_pixels: int = 100_000_000
    max_bytes: int = 400_000_000  # 100 million pixels of 4 channels, not compressed
    max_side: int = 65_500  # pixels; the longest side of a JPEG
    max_scans: int = 64  # of a JPEG; encoders make 10 to 20, and each is a pass over all pixels


@dataclass(frozen=True)
class Bounds:
    """Resources that opening a file in a child process may take.

    Attributes:
        cpu_seconds: of computing; independent of the load of the machine.
        wall_seconds: of waiting, for example for a disk that does not answer.
        megabytes: of memory, beyond what the child has before the first file.
    """

    cpu_seconds: float = 10.0
    wall_seconds: float = 60.0
    megabytes: int = 1500


LIMITS, BOUNDS = Limits(), Bounds()
MaxEdge = Annotated[int, Range(32, LIMITS.max_side)]  # pixels


def list_words(words: list[str], last: str) -> str:
    """Returns "a, b or c", where `last` is "or"."""
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def list_formats(last: str) -> str:
    """Returns the names of all formats as `list_words` does."""
    return list_words([one.name for one in FORMATS.values()], last)


def in_megabytes(count: int) -> str:
    """Returns bytes in MB, as people write them."""
    return f"{count / 1e6:g} MB"


def in_millions(count: int) -> str:
    """Returns a count in millions, as people write it."""
    return f"{count / 1e6:g} million"
