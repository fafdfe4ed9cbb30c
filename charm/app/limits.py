"""What the server takes. The help of `charm serve`, the page and the messages of refusals are made from it."""

from dataclasses import dataclass

from charm.images.limits import LIMITS


@dataclass(frozen=True)
class ServerLimits:
    """What clients may ask for."""

    body_bytes: int = 100_000_000  # of a request
    file_bytes: int = 40_000_000  # of an image's file
    pixels: int = LIMITS.max_pixels  # of an image
    files: int = 64  # images of a request
    draws: int = 16  # of an image
    requests: int = 64  # that are read or answered at once; each may have a body on the disk
    sequences: int = 1024  # draws that are being read, cut or scored at once; 0.3 MB of memory each at 512 tokens
    decoders: int = 2  # images that are decoded at once; up to 0.6 GB each at 100 million pixels
    connections: int = 4096  # open at once; fewer where the system allows fewer open files
    head_seconds: float = 10.0  # for the whole head of a request, from its connection or its first byte on
    body_seconds: float = 60.0  # for the whole body of a request, and for a client to take what is sent to it
    end_seconds: int = 8  # for what is under way when the server is told to end; Docker gives it 10


SERVER_LIMITS = ServerLimits()
