"""Uploaded images -> pixels: each is opened in a child process first (charm/images/quarantine.py)."""

import asyncio
import itertools
import os
import queue
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import numpy as np
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from charm.app.guard import Refused
from charm.app.limits import ServerLimits
from charm.images.decode import decode_image
from charm.images.limits import Bounds, Limits
from charm.images.quarantine import Quarantine
from charm.images.reasons import REASONS, Rejected

T = TypeVar("T")

FIELD = "photo"
_IN_MEMORY = 2**20  # bytes of a raw body before it goes to the disk, as of a file in a form
_MULTIPART = "multipart/form-data"


class Uploads:
    """Decodes images, at most `decoders` at once, each with a child process of its own."""

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._accepted = Limits(max_pixels=limits.pixels, max_bytes=limits.file_bytes)
        self._folder = tempfile.TemporaryDirectory(prefix="charm-uploads-")
        self._numbers = itertools.count()
        self._threads = ThreadPoolExecutor(limits.decoders, "decoder")
        self._idle: queue.LifoQueue[Quarantine] = queue.LifoQueue()  # the last one used has its memory at hand
        for _ in range(limits.decoders):
            self._idle.put(Quarantine(Path(self._folder.name), self._accepted, Bounds()))

    async def use(self, file: BinaryIO, work: Callable[[np.ndarray], T]) -> T:
        """Calls `work` in a thread with the image of a file, uint8 (H, W, 3), and returns its result.

        Raises:
            Rejected: as `decode_image`, and what happened to the child process.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._use, file, work)

    def _use(self, file: BinaryIO, work: Callable[[np.ndarray], T]) -> T:
        data = self._inspect(file)
        try:
            return work(decode_image(data, self._accepted).pixels)
        except MemoryError:
            raise Rejected("memory") from None

    def _inspect(self, file: BinaryIO) -> bytes:
        """Returns the bytes of an image after a child process has decoded it unharmed."""
        if file.seek(0, os.SEEK_END) > self._accepted.max_bytes:
            raise Rejected("too_many_bytes")
        file.seek(0)
        path = Path(self._folder.name, str(next(self._numbers)))  # a name of ours: the client's is never a path
        quarantine = self._idle.get()
        try:
            with path.open("xb") as copy:
                shutil.copyfileobj(file, copy)
            if reason := quarantine.inspect_file(path.name)["reason"]:
                raise Rejected(reason)
            return path.read_bytes()
        finally:
            path.unlink(missing_ok=True)
            self._idle.put(quarantine)

    def explain(self, reason: str) -> str:
        """Explains a reason with the server's own limits."""
        ours = {
            "too_many_bytes": f"more than {self._limits.file_bytes // 10**6} MB",
            "too_large": f"more than {self._limits.pixels // 10**6} million pixels",
        }
        return (REASONS | ours)[reason]

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().close()
        self._folder.cleanup()


@asynccontextmanager
async def read_files(request: Request, limits: ServerLimits) -> AsyncIterator[list[tuple[str, BinaryIO]]]:
    """Yields the images of a request, from a form's field or the whole body, with the client's names.

    Raises:
        Refused: it is of another type, malformed, has no or too many files, or its body is too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _MULTIPART:
        try:
            form = await request.form(max_files=limits.files, max_fields=limits.files)
        except HTTPException as error:
            if error.detail.startswith("Too many files"):
                raise Refused(413, "too_many_files", f"a request may have at most {limits.files} images") from None
            raise Refused(400, "malformed", f"not a form with files in the field {FIELD!r}: {error.detail}") from None
        try:
            files = [part for part in form.getlist(FIELD) if isinstance(part, UploadFile)]
            if not files:
                raise Refused(400, "malformed", f"the form has no file in the field {FIELD!r}")
            yield [(file.filename or "", file.file) for file in files]
        finally:
            await form.close()
    elif kind.startswith("image/") or kind in ("", "application/octet-stream"):
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
            async for part in request.stream():
                file.write(part)
                if file.tell() > limits.file_bytes:
                    raise Refused(413, "too_large", f"an image may have at most {limits.file_bytes // 10**6} MB")
            if not file.tell():
                raise Refused(400, "malformed", "the request has no body: send an image")
            yield [("", cast(BinaryIO, file))]
    else:
        expected = f"{_MULTIPART} with files in the field {FIELD!r}, or an image with Content-Type: image/jpeg"
        raise Refused(415, "media_type", f"this is {kind}: expected {expected}")
