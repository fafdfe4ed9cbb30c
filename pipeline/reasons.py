"""Why a picture is left out."""

# Every reason for which a listed picture can be left out.
REASONS = {
    "missing": "there is no such file",
    "outside": "the path leads out of the root folder",
    "unreadable": "the file cannot be opened",
    "empty": "the file has no bytes",
    "format": "not a JPEG, PNG, WebP, BMP or TIFF file",
    "too_large": "more pixels than manifest.max_pixels",
    "corrupt": "damaged or cut short",
}
