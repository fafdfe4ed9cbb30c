"""Uploaded images -> pixels: each is opened in a child process first (charm/images/quarantine.py).

a request -> a file on the disk per part, or a refusal that names the part
          -> the child decodes it -> this process decodes it
"""

import asyncio
import contextlib
import email.message
import email.utils
import itertools
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from charm.app.guard import Refused
from charm.app.limits import ServerLimits
from charm.images.decode import decode_image
from charm.images.find import ImageFile, ImageFileReader
from charm.images.limits import Colour, Limits
from charm.images.reasons import REASONS, Rejected
from charm.runtime.errors import format_count

T = TypeVar("T")

FIELD = "image"
_MULTIPART = "multipart/form-data"


class Uploads:
    """Keeps the images of requests as long as those last, and decodes them, at most `decoders` at once."""

    def __init__(self, limits: ServerLimits, colour: Colour) -> None:
        self._limits, self._colour = limits, colour
        self._reader = ImageFileReader(Limits(max_pixels=limits.pixels, max_bytes=limits.file_bytes))
        self._folder = tempfile.TemporaryDirectory(prefix="charm-uploads-")
        self._numbers = itertools.count()
        self._threads = ThreadPoolExecutor(limits.decoders, "decoder")

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[list[tuple[str, Path]]]:
        """Yields the images of a request, from the parts of a form or the whole body: the client's name and a file.

        Raises:
            Refused: it is of another type, malformed, has no or too many files, or its body is too large; or a part of
                the form is no file.
        """
        files: list[tuple[str, Path]] = []
        try:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind == _MULTIPART:
                await self._receive_form(request, files)
            elif kind.startswith("image/") or kind in ("", "application/octet-stream"):
                await self._receive_image(request, files)
            else:
                expected = f"{_MULTIPART} with files in the field {FIELD!r}, or an image with Content-Type: image/jpeg"
                raise Refused(415, "media_type", f"this is {kind}: expected {expected}")
            yield files
        finally:
            for _, path in files:
                with contextlib.suppress(OSError):  # Windows: the thread that reads it is not done
                    path.unlink()

    async def _receive_form(self, request: Request, files: list[tuple[str, Path]]) -> None:
        try:
            with contextlib.closing(
                _Form(request.headers["content-type"], files, self._next_path, self._limits)
            ) as form:
                async for data in request.stream():
                    await asyncio.to_thread(form.write, data)
                form.check_end()
        except FormParserError as error:
            raise Refused(400, "malformed", f"part {len(files) + 1} of the form cannot be read: {error}") from None

    async def _receive_image(self, request: Request, files: list[tuple[str, Path]]) -> None:
        files.append(("", self._next_path()))
        left = self._limits.file_bytes
        with files[0][1].open("xb") as file:
            async for data in request.stream():
                left -= len(data)
                if left < 0:
                    raise Refused(413, "too_large", f"an image may have at most {self._limits.file_bytes // 10**6} MB")
                await asyncio.to_thread(file.write, data)
        if left == self._limits.file_bytes:
            raise Refused(400, "malformed", "the request has no body: send an image")

    def _next_path(self) -> Path:
        return Path(self._folder.name, str(next(self._numbers)))  # a name of ours: the client's is never a path

    async def use(self, path: Path, work: Callable[[np.ndarray], T]) -> T:
        """Calls `work` in a thread with the image of a file, uint8 (H, W, 3), and returns its result.

        Raises:
            Rejected: as `decode_image`, and what happened to the child process.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._use, path, work)

    def _use(self, path: Path, work: Callable[[np.ndarray], T]) -> T:
        data = self._reader.read(ImageFile(str(path), Path(self._folder.name)))
        try:
            return work(decode_image(data, self._reader.limits, self._colour).pixels)
        except MemoryError:
            raise Rejected("memory") from None

    def explain(self, reason: str) -> str:
        """Explains a reason with the server's own limits."""
        ours = {
            "too_many_bytes": f"more than {self._limits.file_bytes // 10**6} MB",
            "too_large": f"more than {self._limits.pixels // 10**6} million pixels",
        }
        return (REASONS | ours)[reason]

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._reader.close()
        self._folder.cleanup()


class _Form:
    """Takes a multipart form apart into files, one per part. A part that is no image's file ends it: none is dropped.

    `files` gets the client's name and the path of each part, in their order; `next_path` says where a part goes.
    """

    def __init__(
        self,
        content_type: str,
        files: list[tuple[str, Path]],
        next_path: Callable[[], Path],
        limits: ServerLimits,
    ) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not boundary:
            raise Refused(400, "malformed", f"the form has no boundary in its Content-Type {content_type[:80]!r}")
        self._files, self._next_path, self._limits = files, next_path, limits
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._headers[-1][0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._headers[-1][1].extend(data[start:end]),
                "on_header_begin": lambda: self._headers.append((bytearray(), bytearray())),
                "on_headers_finished": self._open_part,
                "on_part_data": self._write_part,
                "on_part_end": self.close,
                "on_end": self._end,
            },
        )
        self._headers: list[tuple[bytearray, bytearray]] = []
        self._file: BinaryIO | None = None
        self._closing, self._tail, self._is_over = b"--" + boundary + b"--", b"", False

    def write(self, data: bytes) -> None:
        was_over = self._is_over
        self._parser.write(data)
        rest = data if was_over else (self._tail + data).partition(self._closing)[2] if self._is_over else b""
        if rest.strip():  # the parser passes over it
            raise Refused(400, "malformed", f"the form goes on after its end, which came after {self._count()}")
        self._tail = (self._tail + data)[-len(self._closing) :]

    def check_end(self) -> None:
        """Raises Refused unless the form was whole and had a file."""
        if not self._is_over:
            raise Refused(400, "malformed", f"the form ends before its closing boundary, after {self._count()}")
        if not self._files:
            raise Refused(400, "malformed", f"the form has no parts: expected files in the field {FIELD!r}")

    def close(self) -> None:
        """Closes the file of the part that is at its end or given up."""
        if self._file is not None:
            self._file.close()

    def _count(self) -> str:
        return format_count(len(self._files), "part")

    def _begin_part(self) -> None:
        self._headers = []
        if len(self._files) >= self._limits.files:
            raise Refused(413, "too_many_files", f"a request may have at most {self._limits.files} images")

    def _open_part(self) -> None:
        name = self._read_name()
        self._files.append((name, self._next_path()))
        self._file = self._files[-1][1].open("xb")

    def _read_name(self) -> str:
        """Returns the client's name for the file of a part; raises Refused if it is no file of the field."""
        part = f"part {len(self._files) + 1} of the form"
        found = [bytes(value).decode("latin-1") for name, value in self._headers if name.lower() == _DISPOSITION]
        header = email.message.Message()
        header[_DISPOSITION.decode()] = found[0] if len(found) == 1 else ""
        field = _read_parameter(header, "name")
        if header.get_content_disposition() != "form-data" or field is None:
            raise Refused(400, "malformed", f"{part} has not exactly one Content-Disposition: form-data with a name")
        if field != FIELD:
            raise Refused(400, "malformed", f"{part} is of the field {field[:80]!r}: expected {FIELD!r}")
        name = _read_parameter(header, "filename")
        if name is None:
            raise Refused(400, "malformed", f"{part} is text and no file: with curl, -F {FIELD}=@FILE sends a file")
        return name

    def _write_part(self, data: bytes, start: int, end: int) -> None:
        assert self._file is not None
        self._file.write(data[start:end])

    def _end(self) -> None:
        self._is_over = True


_DISPOSITION = b"content-disposition"


def _read_parameter(header: email.message.Message, name: str) -> str | None:
    """Returns a parameter of Content-Disposition, also where it is there as `name*` alone (RFC 5987)."""
    given = header.get_param(name, header=_DISPOSITION.decode())
    if given is None:
        return None
    try:
        text = email.utils.collapse_rfc2231_value(given)
    except (UnicodeError, LookupError):  # a charset that is none of text
        text = given[2] if isinstance(given, tuple) else given
    try:
        return text.encode("latin-1").decode() if isinstance(given, str) else text
    except UnicodeError:  # not UTF-8
        return text
