"""BMP: refuses the kinds of pixels that Pillow decodes wrongly."""

import io
import struct

from PIL import BmpImagePlugin

from charm.images.reasons import Rejected

_CORE = 12  # bytes of the oldest header
_WITH_ALPHA = 56  # bytes of the first header that has a mask of alpha
_RUN_LENGTHS, _BIT_FIELDS = (1, 2), 3


def open_bmp(data: bytes) -> BmpImagePlugin.BmpImageFile:
    """Opens a BMP file; no pixel is decoded yet.

    Raises:
        Rejected: mode.
        SyntaxError, OSError, struct.error, ...: damaged, or Pillow does not know the kind of pixels.
    """
    image = BmpImagePlugin.BmpImageFile(io.BytesIO(data))
    start, header = struct.unpack_from("<II", data, 10)
    (bits,) = struct.unpack_from("<H", data, 24 if header == _CORE else 28)
    # Pillow drops a palette of greys and then reads the indices with the bits of grey; it takes runs to begin at
    # even places of the file.
    if (image.mode == "1" and bits != 1) or (image.mode == "L" and bits != 8):
        raise Rejected("mode")
    if image.info["compression"] in _RUN_LENGTHS and start % 2:
        raise Rejected("mode")
    # Without colour masks the layout of a pixel is unknown; Pillow leaves out a single bit of alpha.
    if image.info["compression"] == _BIT_FIELDS:
        masks = struct.unpack_from("<4I", data, 54)
        if not any(masks[:3]) or (bits == 16 and header >= _WITH_ALPHA and masks[3]):
            raise Rejected("mode")
    return image
