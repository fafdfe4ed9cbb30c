"""The formats that are read, and the limits of an image file. Reasons, help texts and the page use these."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Literal

from charm.runtime.schema import Range


@dataclass(frozen=True)
class Format:
    """A format of image files."""

    name: str  # for people
    media_type: str  # in HTTP
    endings: tuple[str, ...]  # of files' names, lower case
    pillow: tuple[str, ...]  # Pillow's names of it
    package: str | None = None  # that reads it, if it is in an extra

    @property
    def is_readable(self) -> bool:
        """Whether the package that reads it is installed."""
        return self.package is None or find_spec(self.package) is not None


# By the extension that a file of this format has in shards.
FORMATS = {
    "jpg": Format("JPEG", "image/jpeg", (".jpg", ".jpeg", ".jfif", ".mpo"), ("JPEG", "MPO")),
    "png": Format("PNG", "image/png", (".png",), ("PNG",)),
    "webp": Format("WebP", "image/webp", (".webp",), ("WEBP",)),
    "bmp": Format("BMP", "image/bmp", (".bmp",), ("BMP",)),
    "tif": Format("TIFF", "image/tiff", (".tif", ".tiff"), ("TIFF",)),
    "gif": Format("GIF", "image/gif", (".gif",), ("GIF",)),
    "avif": Format("AVIF", "image/avif", (".avif",), ("AVIF",)),
    "heic": Format("HEIC", "image/heic", (".heic", ".heif", ".hif"), ("HEIF",), "pillow_heif"),
    "jp2": Format("JPEG 2000", "image/jp2", (".jp2", ".j2k", ".jpf", ".jpx"), ("JPEG2000",)),
}
ENDINGS = tuple(ending for one in FORMATS.values() for ending in one.endings)

# What becomes of wide colours, such as those of Display P3: srgb converts them by their profile, as_is does not.
Colour = Literal["srgb", "as_is"]


@dataclass(frozen=True)
class Limits:
    """Limits of an image file, checked before any of its pixels is decoded."""

    max_pixels: int = 100_000_000
    max_bytes: int = 400_000_000  # 100 million pixels of 4 channels, not compressed
    max_side: int = 65_500  # pixels; the longest side of a JPEG
    max_scans: int = 64  # of a JPEG; encoders make 10 to 20, and each is a pass over all pixels


@dataclass(frozen=True)
class Bounds:
    """Resources that opening a file in a child process may take."""

    cpu_seconds: float = 10.0  # of computing; independent of the load of the machine
    wall_seconds: float = 60.0  # of waiting, for example for a disk that does not answer
    megabytes: int = 1500  # of memory, beyond what the child has before the first file


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
