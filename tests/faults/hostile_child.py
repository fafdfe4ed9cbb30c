"""The child process of charm.images.quarantine with a decoder that obeys a file: it stands for one with a hole.

Run as `python -m tests.faults.hostile_child` in place of `python -m charm.images.quarantine`.
"""

import contextlib
import ctypes
import io
import os
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from charm.images import quarantine
from charm.images.decode import Decoded, decode_image
from charm.images.limits import Limits

_WORN: list[bytearray] = []


def image(seed: int = 0) -> bytes:
    """A good one."""
    buffer = io.BytesIO()
    shades = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(shades).resize((25, 20)).save(buffer, "JPEG")
    return buffer.getvalue()


def _spin() -> None:
    while True:
        pass


def _eat() -> None:
    while True:
        _WORN.append(bytearray(2**24))


def _reply(data: bytes) -> None:
    for descriptor in range(3, 10):  # whichever leads to the parent
        with contextlib.suppress(OSError):
            os.write(descriptor, data)


def _print() -> None:
    print("from Python", flush=True)
    os.system("echo from a shell; echo and its errors >&2")
    sys.stderr.write("and its errors")


ORDERS = {
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit": lambda: os._exit(0),
    "spin": _spin,
    "sleep": lambda: time.sleep(3600),
    "eat": _eat,
    "wear": lambda: _WORN.append(bytearray(150_000_000)),  # too much the second time only
    "lie": lambda: _reply(b'{"reason": "no such reason"}\n'),
    "babble": lambda: _reply(b"x" * 10**6),
    "print": _print,
}


def decode_or_obey(data: bytes, limits: Limits) -> Decoded:
    order = data.decode("latin-1")
    if order == "look around":
        opened = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()]
        return Decoded(np.zeros((1, 1, 3), np.uint8), "jpg", (*os.environ, *opened))
    if order.startswith("write "):
        Path(order.removeprefix("write ")).write_bytes(b"x")
    if order in ORDERS:
        ORDERS[order]()
        data = image()
    return decode_image(data, limits)


if __name__ == "__main__":
    quarantine.decode_image = decode_or_obey  # type: ignore[attr-defined]
    quarantine.serve()
