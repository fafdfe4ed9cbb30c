"""What the server takes. The help of `charm serve`, the page and the messages of refusals are made from it."""

from dataclasses import dataclass

from charm.images.limits import LIMITS


@dataclass(frozen=True)
class ServerLimits:
    """What clients may ask for.

    Attributes:
        body_bytes: of a request.
        file_bytes: of an image's file.
        pixels: of an image.
        files: images of a request.
        draws: of an image.
        requests: that are read or answered at once; each may have a body on the disk.
        sequences: draws of images that are being read, cut or scored at once; 0.3 MB of memory each at 512 tokens.
        decoders: images that are decoded at once; up to 0.6 GB each at 100 million pixels.
        connections: open at once; fewer where the system allows fewer open files.
        head_seconds: for the whole head of a request, from its connection or its first byte on.
        body_seconds: for the whole body of a request, and for a client to take what is sent to it.
        end_seconds: for what is under way when the server is told to end; less than the 10 s that Docker gives.
    """

    body_bytes: int = 100_000_000
    file_bytes: int = 40_000_000
    pixels: int = LIMITS.max_pixels
    files: int = 64
    draws: int = 16
    requests: int = 64
    sequences: int = 1024
    decoders: int = 2
    connections: int = 4096
    head_seconds: float = 10.0
    body_seconds: float = 60.0
    end_seconds: int = 8


SERVER_LIMITS = ServerLimits()
