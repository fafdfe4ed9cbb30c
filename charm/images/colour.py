"""Colours of other spaces than sRGB, such as Display P3 and Adobe RGB -> sRGB, by the ICC profile of an image."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from charm.images.headers import says_adobe_rgb
from charm.images.reasons import Rejected

_MAX_BYTES = 4_000_000  # of a profile; those of printing presses have up to 3 MB
_KINDS = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}  # a profile's colour space -> Pillow's mode
GREY_MODES = ("1", "L", "LA", "I;16", "I;16L", "I;16B")
_DEVICES = (b"mntr", b"scnr", b"prtr", b"spac")  # of profiles that describe images; others link two profiles
# A profile that moves no colour by more than this, of 255, is one of the many of sRGB, which differ in rounding.
_SAME = 2
_PROBE = np.stack(np.meshgrid(*[np.linspace(0, 255, 9)] * 3), axis=-1).astype(np.uint8).reshape(27, 27, 3)

# Colour primaries of H.273 -> (x, y) of red, green, blue, white: BT.709, PAL, NTSC (twice), BT.2020, DCI, Display P3.
_D65 = (0.3127, 0.329)
_P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
_NTSC = ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07), _D65)
_PRIMARIES = {
    1: ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06), _D65),
    5: ((0.64, 0.33), (0.29, 0.6), (0.15, 0.06), _D65),
    6: _NTSC,
    7: _NTSC,
    9: ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046), _D65),
    11: (*_P3, (0.314, 0.351)),
    12: (*_P3, _D65),
}
_ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), _D65)
# Curves of H.273. Those of video (1, 6, 14, 15) are shown by screens as that of sRGB (13) is; 2: unspecified.
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
_AS_SRGB, _HIGH_RANGE = {1, 2, 6, 13, 14, 15}, {16, 18}
_UNKNOWN = b"unknown"  # which no decoder of profiles takes for one: ignored, and noted
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # g, a, b, c, d of ICC's parametric curve 3
_D50 = np.array([0.9642, 1.0, 0.8249])  # white of profiles
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


@dataclass(frozen=True)
class Conversion:
    """kind: Pillow's mode of pixels that come in, RGB, L or CMYK; transform: of littleCMS, to sRGB."""

    kind: str
    transform: ImageCms.ImageCmsTransform

    def apply(self, image: Image.Image) -> Image.Image:
        """Converts an image of any mode but palettes to sRGB; the alpha of RGBA stays."""
        kind = image if image.mode == self.kind else image.convert(self.kind)
        converted = self.transform.apply(kind)
        if image.mode == "RGBA":
            converted.putalpha(image.getchannel("A"))
        return converted


def find_conversion(info: Mapping[Any, Any], mode: str) -> tuple[Conversion | None, list[str]]:
    """Finds how the colours of an image become those of sRGB.

    Args:
        info: of Pillow's image: `cicp`, codes of H.273; else an ICC profile; else EXIF that says Adobe RGB; else PNG's
            gamma and chromaticities.
        mode: Pillow's mode of the pixels.

    Returns:
        The conversion, or None for colours that are those of sRGB as they are; and notes.

    Raises:
        Rejected: mode, for codes of a high dynamic range (PQ, HLG): nothing says what of it a print would show.
    """
    profile, exif = info.get("icc_profile"), info.get("exif")
    if "cicp" in info:
        profile = _profile_of_codes(*info["cicp"])
    elif not profile and isinstance(exif, bytes) and says_adobe_rgb(exif):
        profile = _make_profile(_ADOBE_RGB, 563 / 256)
    elif not profile and "gamma" in info and "chromaticity" in info and "srgb" not in info:
        profile = _profile_of_chunks(info["gamma"], info["chromaticity"])
    if not profile:
        return None, []
    try:
        kind, transform = _read_profile(bytes(profile))
    except MemoryError:
        raise
    except Exception:  # littleCMS raises many kinds on damaged profiles
        return None, ["icc_ignored"]
    if (kind == "CMYK") != (mode == "CMYK") or mode == "LAB" or (kind == "L" and mode not in GREY_MODES):
        return None, ["icc_ignored"]
    return (Conversion(kind, transform), ["icc"]) if transform else (None, [])


def _profile_of_codes(primaries: int, transfer: int) -> bytes:
    """Makes the ICC profile for codes of H.273, as PNG's cICP, AVIF and HEIC have them; b"" for those of sRGB."""
    if transfer in _HIGH_RANGE:
        raise Rejected("mode")
    if transfer in _AS_SRGB and primaries in (1, 2):
        return b""
    if primaries not in _PRIMARIES or transfer not in _AS_SRGB | _GAMMAS.keys():
        return _UNKNOWN
    return _make_profile(_PRIMARIES[primaries], _GAMMAS.get(transfer))


def _profile_of_chunks(gamma: float, chromaticity: tuple[float, ...]) -> bytes:
    """Makes the ICC profile for PNG's gAMA and cHRM, in which white comes first."""
    points = [(chromaticity[place], chromaticity[place + 1]) for place in (2, 4, 6, 0)]
    try:
        # 0.45455 is what programs write for the curve of sRGB.
        return _make_profile(tuple(points), None if abs(gamma - 0.45455) < 0.0001 else 1 / gamma)
    except (ArithmeticError, np.linalg.LinAlgError, ValueError):
        return _UNKNOWN


@lru_cache(maxsize=32)
def _make_profile(points: tuple[tuple[float, float], ...], gamma: float | None) -> bytes:
    """Makes an ICC profile (version 4) of an RGB space, from (x, y) of red, green, blue and white.

    Its curve has the gamma, or is that of sRGB (None).
    """
    xyz = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in points]).T
    primaries, white = xyz[:, :3], xyz[:, 3]
    primaries = primaries * np.linalg.solve(primaries, white)
    scale = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
    columns = (np.linalg.inv(_BRADFORD) @ scale @ _BRADFORD @ primaries).T
    kind, values = (0, (gamma,)) if gamma else (3, _SRGB_CURVE)
    curve = b"para" + bytes(4) + kind.to_bytes(2, "big") + bytes(2) + _fixed(*values)
    tags = {b"wtpt": _xyz(_D50)}
    tags |= {name: _xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data, start = len(tags).to_bytes(4, "big"), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + (start + len(data)).to_bytes(4, "big") + len(content).to_bytes(4, "big")
        data += content
    head = bytes(8) + b"\x04\x40\0\0" + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28) + _fixed(*_D50) + bytes(48)
    profile = head + table + data
    return len(profile).to_bytes(4, "big") + profile[4:]


def _fixed(*values: float) -> bytes:
    """Encodes numbers as ICC's s15Fixed16."""
    return b"".join(round(float(value) * 65536).to_bytes(4, "big", signed=True) for value in values)


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(*values)


@lru_cache(maxsize=8)
def _read_profile(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Returns the mode of pixels that a profile is for, and its transform to sRGB; None if that changes nothing.

    Whether it does is tried out: names of profiles lie, and there are dozens of sRGB.

    Raises:
        ValueError, KeyError, OSError, PyCMSError, ...: damaged, too large, or of no image.
    """
    size = int.from_bytes(profile[:4], "big")
    if not 128 <= size <= len(profile) <= _MAX_BYTES or profile[36:40] != b"acsp" or profile[12:16] not in _DEVICES:
        raise ValueError("not a profile of images")
    kind = _KINDS[profile[16:20]]
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), kind, "RGB")
    if kind == "CMYK":
        return kind, transform
    probe = Image.fromarray(_PROBE).convert(kind)
    change = np.asarray(transform.apply(probe)).astype(int) - np.asarray(probe.convert("RGB"))
    return kind, transform if np.abs(change).max() > _SAME else None
