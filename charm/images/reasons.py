"""Reasons for which an image is left out, and notes about what was done to a kept image."""

from charm.images.limits import BOUNDS, LIMITS, in_megabytes, in_millions, list_formats

# Every reason for which a listed image can be left out.
REASONS = {
    "missing": "there is no such file",
    "outside": "the path leads out of the root folder",
    "unreadable": "the file cannot be opened",
    "unrated": "the labels give no rating of it",
    "name": "the name or the path is not text in UTF-8",
    "empty": "the file has no bytes",
    "format": f"not a {list_formats('or')} file",
    "raw": "a camera's RAW file: develop it to JPEG, PNG or TIFF first",
    "heif": 'HEIC needs a package that is not installed: pip install "charm-vit[heif]"',
    "thumbnail": "its first image is a thumbnail or a mask of another image in the file",
    "mode": "a kind of pixels that is not supported, for example floating point, signed numbers, 12-bit JPEG or HDR",
    "too_many_bytes": f"more than {in_megabytes(LIMITS.max_bytes)}",
    "too_large": f"more pixels than manifest.max_pixels ({in_millions(LIMITS.max_pixels)} at most)",
    "too_long": f"a side of more than {LIMITS.max_side} pixels",
    "too_many_parts": "more scans or chunks than any camera or editor writes",
    "corrupt": "damaged or cut short",
    "memory": f"decoding needs more than {BOUNDS.megabytes / 1000:g} GB",
    "timeout": f"decoding takes more than {BOUNDS.cpu_seconds:g} seconds",
    "crashed": "the decoder broke down",
}

# Reasons that may lie in the machine and not in the file: the next run looks at such a file again.
PASSING = {"heif", "unreadable", "memory", "timeout", "crashed"}

# Everything that can be said of a kept image: what was done to its pixels, and what is odd about its label.
NOTES = {
    "exif_orientation": "turned or mirrored upright, as its EXIF orientation asks",
    "grey": "one channel, repeated three times",
    "palette": "colours looked up in its palette",
    "cmyk": "inks turned into RGB, by the colour profile if `icc` is noted, too",
    "icc": "colours of another space, such as Display P3 or Adobe RGB, turned into sRGB",
    "as_is": "colours of another space than sRGB, left as they are, as manifest.colour asks",
    "icc_ignored": "taken for sRGB, since its colour profile is damaged, unknown or of another kind of pixels",
    "16_bit": "the high 8 bits of each channel",
    "alpha_on_white": "transparent pixels put on white",
    "lab": "CIELAB turned into RGB, its white into that of the screen",
    "first_frame": "the first of several images",
    "label_conflict": "the same bytes are listed under another path with another label",
    "jpeg_warning": "whole, but decoders warn of its markers: they were mended in memory",
    "png_warning": "whole, but without its end or with a damaged chunk that says nothing of pixels",
}


class Rejected(ValueError):
    """An image that cannot be used; `reason` is a key of REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(REASONS[reason])
        self.reason = reason
