"""Tensors of a pickled PyTorch module, read without building the module: nothing that the file names is called.

`torch.save(module)` pickles classes, so that reading it elsewhere needs their code, and runs whatever the file says.
Here a small interpreter of pickle's opcodes keeps every class, function and object as a name (`Inert`), and a tensor as
a description of its place in the archive. Nothing is allocated before that description fits the archive's entry.
"""

import io
import math
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from pickletools import genops
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch
from torch import Tensor

from charm.runtime.disk import name_impostor
from charm.runtime.errors import UserError, first_line, in_one_line

_LONGEST_PICKLE = 1 << 20  # bytes, each of which makes up to 75; a ViT-large of transformers takes 300,000
_LONGEST_READ = 1 << 20  # bytes at a time; also of the archive's list, in which an entry takes some 60
_MOST_PARTS = 100_000  # attributes of modules, tensors; a ViT-large has some 10,000
_LONGEST_NAME = 300  # characters; a module that holds itself has a longer one

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_DTYPES = {
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch DoubleStorage": torch.float64,
}


_NOTHING: dict[Any, Any] = {}  # never filled


class Inert:
    """A class, function or object of a pickle, `name` its module and name; `state` is what the object was given."""

    __slots__ = ("name", "state")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: dict[Any, Any] = _NOTHING


@dataclass(frozen=True)
class Stored:
    """A tensor in an archive: the entry `key` holds `numel` numbers of `kind`, a name of torch's storages."""

    kind: str
    key: str
    numel: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Archive:
    """A file of torch.save, opened without executing anything; `content` is what was saved, as Inert and Stored.

    Raises:
        UserError: missing, damaged, of another kind, or hostile.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        if impostor := name_impostor(path):
            raise UserError(f"{path} is {impostor}")
        self._path, self._file = path, _Bounded(path)
        self._size = path.stat().st_size
        try:
            self._zip = ZipFile(self._file)
            (name,) = (name for name in self._zip.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
            self._root = name.removesuffix("data.pkl")
            self.content = unpickle(self._read(name, most=_LONGEST_PICKLE))
        except Exception as error:  # of many kinds, as damage has it
            self.close()
            raise UserError(self._refuse(f"cannot be read as a file of torch.save ({first_line(error)})")) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def list_tensors(self, module: Any) -> tuple[dict[str, Stored], dict[str, float]]:
        """Lists the parameters and buffers of a module by name, and the numbers among the attributes of its parts."""
        tensors: dict[str, Stored] = {}
        numbers: dict[str, float] = {}
        parts, seen = deque([("", module)]), 0
        while parts:
            path, part = parts.popleft()
            state = part.state if isinstance(part, Inert) else {}
            inside = _entries(state.get("_modules"))
            held = [*_entries(state.get("_parameters")), *_entries(state.get("_buffers"))]
            tensors |= {path + name: one for name, one in held if isinstance(one, Stored)}
            numbers |= {path + name: one for name, one in _entries(state) if type(one) in (int, float)}
            parts.extend((f"{path}{name}.", one) for name, one in inside)
            seen += 1 + len(state) + len(held) + len(inside)  # a part that is in many places counts in each
            if seen > _MOST_PARTS or len(path) > _LONGEST_NAME:
                raise UserError(self._refuse("has more parts, or parts within parts, than any model"))
        return tensors, numbers

    def read(self, tensors: dict[str, Stored]) -> dict[str, Tensor]:
        """Reads tensors, float32; together they take no more memory than the file has bytes.

        Raises UserError if a tensor is not of floats, or its place in the archive is not as described.
        """
        total = 0
        for name, one in tensors.items():
            if problem := self._check(one):
                raise UserError(self._refuse(f"describes a tensor that it does not hold, {name} ({problem})"))
            total += math.prod(one.shape) * _DTYPES[one.kind].itemsize
        if total > self._size:
            raise UserError(self._refuse(f"has {self._size} bytes for tensors of {total}"))
        try:
            return {name: self._read_tensor(one) for name, one in tensors.items()}
        except Exception as error:
            raise UserError(self._refuse(f"is damaged ({first_line(error)})")) from error

    def _check(self, one: Stored) -> str:
        """Says what is wrong with the description of a tensor; "" if it fits its entry."""
        numbers = (one.numel, one.offset, *one.shape, *one.stride)
        if one.kind not in _DTYPES:
            return f"of {one.kind}"
        if not all(type(number) is int and number >= 0 for number in numbers) or len(one.shape) != len(one.stride):
            return "its sizes are no sizes"
        ends = (size - 1 for size in one.shape)
        last = one.offset + sum(end * step for end, step in zip(ends, one.stride, strict=True))
        if 0 in one.shape or last >= one.numel or math.prod(one.shape) > one.numel:
            return "it reaches beyond its numbers"
        size = self._measure(f"{self._root}data/{one.key}")
        expected = one.numel * _DTYPES[one.kind].itemsize
        return "" if size == expected else f"{expected} bytes, and the archive has {size}"

    def _measure(self, name: str) -> int:
        """Returns the bytes of an entry; -1 if there is none, it is compressed, or it is longer than the file."""
        entry = self._zip.NameToInfo.get(name)
        is_plain = entry is not None and entry.compress_type == ZIP_STORED and entry.file_size == entry.compress_size
        return entry.file_size if entry is not None and is_plain and entry.file_size <= self._size else -1

    def _read(self, name: str, most: int) -> bytearray:
        size = self._measure(name)
        if not 0 <= size <= most:
            raise ValueError(f"{name} has {size} bytes, expected up to {most}, not compressed")
        data = bytearray(size)
        view = memoryview(data)
        with self._zip.open(name) as file:  # which compares the checksum at the end
            for start in range(0, size, _LONGEST_READ):
                if file.readinto(view[start : start + _LONGEST_READ]) != min(_LONGEST_READ, size - start):  # type: ignore[attr-defined]
                    raise ValueError(f"{name} is cut short")
        return data

    def _read_tensor(self, one: Stored) -> Tensor:
        data = self._read(f"{self._root}data/{one.key}", most=self._size)
        numbers = torch.frombuffer(data, dtype=_DTYPES[one.kind])
        return numbers.as_strided(one.shape, one.stride, one.offset).float().contiguous()

    def _refuse(self, problem: str) -> str:
        return in_one_line(f"{self._path} {problem}: nothing was executed, and nothing is loaded")


class _Bounded(io.FileIO):
    """A file of which no more than _LONGEST_READ bytes are read at once, whatever an archive says of itself."""

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = os.fstat(self.fileno()).st_size - self.tell() if size is None or size < 0 else size
        if wanted > _LONGEST_READ:
            raise ValueError(f"its list of entries takes {wanted} bytes")
        return super().read(wanted) or b""


def _entries(value: Any) -> list[tuple[str, Any]]:
    """Returns the entries of a dictionary of a pickle that have a name; none of anything else."""
    return [(key, one) for key, one in value.items() if type(key) is str] if type(value) is dict else []


def unpickle(data: bytes | bytearray) -> Any:
    """Reads a pickle of protocol 2, as torch.save writes it; classes, functions and objects become Inert.

    Raises:
        ValueError: an opcode that torch.save does not write.
        Exception: of any kind, where the pickle is damaged.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop_from(start: int) -> list[Any]:
        items = stack[start:]
        del stack[start:]
        return items

    argument: Any
    for opcode, argument, _ in genops(bytes(data)):
        name = opcode.name
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _TUPLES:
            stack.append(tuple(pop_from(len(stack) - _TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(pop_from(marks.pop())))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(Inert(argument))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, called = stack.pop(), stack.pop()
            stack.append(_stand_for(called, arguments))
        elif name == "BINPERSID":
            pass  # ("storage", class, key, device, numel) stays as it is, and nothing is looked up by it
        elif name in ("APPEND", "APPENDS"):
            items = pop_from(marks.pop() if name == "APPENDS" else len(stack) - 1)
            if type(stack[-1]) is list:
                stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = pop_from(marks.pop() if name == "SETITEMS" else len(stack) - 2)
            if type(stack[-1]) is dict:  # hashing a tuple of tuples may take for ever: only plain keys are kept
                pairs = zip(items[::2], items[1::2], strict=True)
                stack[-1].update((key, one) for key, one in pairs if type(key) in (str, int, float))
        elif name == "BUILD":
            state = stack.pop()
            state = state[0] if type(state) is tuple and state else state  # (attributes, slots)
            if isinstance(stack[-1], Inert) and type(state) is dict:
                stack[-1].state = state
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise ValueError(f"its pickle has the opcode {name}")
    raise ValueError("its pickle has no end")


def _stand_for(called: Any, arguments: Any) -> Any:
    """Returns what stands for a call's result: a description of a tensor, an empty dictionary, or an object's name."""
    name = called.name if isinstance(called, Inert) else ""
    if name in ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor"):
        storage, offset, shape, stride, *_ = arguments
        _, kind, key, _, numel = storage
        return Stored(kind.name, str(key), numel, offset, tuple(shape), tuple(stride))
    if name == "torch._utils _rebuild_parameter":
        return arguments[0]
    return {} if name == "collections OrderedDict" else Inert(name)
