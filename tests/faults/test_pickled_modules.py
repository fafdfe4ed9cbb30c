"""G4 and G6: a hostile checkpoint runs nothing, takes no memory to speak of, and ends in one line."""

import io
import pickle
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from charm.published import import_checkpoint
from charm.runtime.errors import UserError
from tests.faults.conftest import Gate
from tests.pickles import save_published

STORAGE = bytes(64)


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def numbers(*values: int | str) -> bytes:
    return b"(" + b"".join(text(one) if isinstance(one, str) else number(one) for one in values) + b"t"


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + b"(" + b"".join(arguments) + b"tR"


def tensor(
    numel: int = 16,
    offset: int = 0,
    shape: tuple[int | str, ...] = (16,),
    stride: tuple[int, ...] = (1,),
    key: str = "0",
    kind: str = "FloatStorage",
) -> bytes:
    storage = b"(" + text("storage") + named("torch", kind) + text(key) + text("cpu") + number(numel) + b"tQ"
    given = storage, number(offset), numbers(*shape), numbers(*stride), b"\x89", b"}"
    return call("torch._utils", "_rebuild_tensor_v2", *given)


def entries(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


def module(parameters: bytes = b"}", modules: bytes = b"}") -> bytes:
    return named("gone", "Container") + b")\x81" + entries(_parameters=parameters, _modules=modules) + b"b"


def checkpoint(value: bytes) -> bytes:
    return b"\x80\x02" + entries(model_state_dict=value) + b"."


def holding(value: bytes) -> bytes:
    """A checkpoint with a tensor, or something else, in the place of one."""
    return checkpoint(module(entries(weight=value)))


def nested(depth: int) -> bytes:
    """A tuple of a tuple twice, and so on; each level is 5 bytes and doubles what a hash takes."""
    return b")" + b"".join(b"q%ch%c\x86" % (level, level) for level in range(depth))


def doubled(depth: int) -> bytes:
    """Modules of two parts each, which are the same."""
    built = module()
    for level in range(depth):
        built = module(modules=entries(a=built + b"q%c" % level, b=b"h%c" % level))
    return built


def archive(data: bytes, storage: bytes = STORAGE, compressed: str = "", more: int = 0) -> bytes:
    """A file of torch.save, whose entry `compressed` is; with `more` entries that nobody asks for."""
    out, members = io.BytesIO(), {"data.pkl": data, "data/0": storage}
    with zipfile.ZipFile(out, "w", compresslevel=1) as file:
        for name, content in (members | {f"data/more-{index:050}": b"" for index in range(more)}).items():
            kind = zipfile.ZIP_DEFLATED if name == compressed else zipfile.ZIP_STORED
            file.writestr(f"archive/{name}", content, kind)
    return out.getvalue()


def list_hostile(run: tuple[str, str, bytes]) -> dict[str, bytes | Callable[[], bytes]]:
    """Files by what they try; `run` makes a folder where it is called."""
    os_name, function, argument = run
    order = call(os_name, function, argument)
    getter = call("builtins", "getattr", named("builtins", "__dict__"), text("eval"))
    code = text(f"__import__('os').mkdir({argument[5:].decode()!r})")
    own = named("gone", "Container") + b")\x81q\x05" + entries(_modules=entries(a=b"h\x05")) + b"b"
    pickles = {
        "a call": order,
        "a call in a call": call("builtins", "list", call("builtins", "map", named("os", "mkdir"), order)),
        "eval by getattr": getter + b"(" + code + b"tR",
        "a call in a tensor's hooks": call("torch._utils", "_rebuild_parameter", order, b"\x88", order),
        "an instance of Popen": named("subprocess", "Popen") + b"(" + text("true") + b"t\x81",
        "state of a class": named("gone", "X") + b"(N}" + text("__reduce__") + order + b"stb",
        "state of torch's own function": named("torch._utils", "_rebuild_tensor_v2") + b"}" + text("x") + order + b"sb",
        "INST": b"(" + argument + f"i{os_name}\n{function}\n".encode(),
        "OBJ": b"(" + named(os_name, function) + argument + b"o",
        "STACK_GLOBAL": text(os_name) + text(function) + b"\x93(" + argument + b"tR",
        "an extension": b"\x82\x01",
        "a persistent id of text": b"P0\n",
        "a persistent id that is a call": order + b"Q",
        "items of a class": named("collections", "OrderedDict") + text("x") + order + b"s",
        "a tensor of 4 TB": tensor(1 << 40, shape=(1 << 40,)),
        "a tensor larger than its entry": tensor(1000, shape=(1000,)),
        "a tensor repeated by steps of 0": tensor(shape=(10**6, 10**6), stride=(0, 0)),
        "a tensor beyond its numbers": tensor(offset=8),
        "negative sizes": tensor(shape=(-4, -4), stride=(1, 1)),
        "negative steps": tensor(offset=15, stride=(-1,)),
        "sizes that are no numbers": tensor(shape=("16",)),
        "a tensor of another place": tensor(key="../data.pkl"),
        "a storage of objects": tensor(kind="UntypedStorage"),
        "a place in the memo beyond any": b"Nr\xff\xff\xff\x7f",
        "bytes that are not there": b"\x96" + (1 << 40).to_bytes(8, "little"),
        "a text longer than the file": b"X\xff\xff\xff\x7fabc",
        "a number of many digits": b"L" + b"9" * 100_000 + b"L\n",
        "a key that takes for ever to hash": b"}" + nested(99) + b"Ns",
        "no end of brackets": b"]" * 100_000 + b"a" * 99_999,
    }
    files: dict[str, bytes | Callable[[], bytes]] = {name: archive(holding(one)) for name, one in pickles.items()}
    layers = {str(index): module(entries(weight=tensor(1024, shape=(1024,)))) for index in range(500)}
    files |= {
        "a module within itself": archive(checkpoint(own)),
        "modules that double": archive(checkpoint(doubled(99))),
        "tensors that share their numbers": archive(checkpoint(module(modules=entries(**layers))), storage=bytes(4096)),
        "a pickle without end": archive(checkpoint(b"N")[:-1]),
        "dictionaries without end": archive(b"\x80\x02" + b"}" * 1_000_000 + b"."),
        "a pickle of 2 MB": archive(checkpoint(text("x" * 2_000_000))),
        "a compressed pickle": lambda: archive(bytes(250_000_000), compressed="data.pkl"),
        "compressed numbers": archive(holding(tensor()), compressed="data/0"),
        "a long list of entries": archive(holding(tensor()), more=20_000),
        "a cut archive": archive(holding(tensor()))[:-30],
        "a pickle without an archive": b"\x80\x02" + order + b".",
    }
    return files


def test_hostile_checkpoints(tmp_path: Path, gate: Gate) -> None:
    save_published(tmp_path)  # for the positions
    marker, path, failures = tmp_path / "executed", tmp_path / "hostile.pth", []
    files = list_hostile(("os", "mkdir", text(str(marker))))
    pickle.loads(b"\x80\x02" + call("os", "mkdir", text(str(marker))) + b".")  # the trap does work
    marker.rmdir()
    for name, made in files.items():
        path.write_bytes(made() if callable(made) else made)
        tracemalloc.start()
        started = time.perf_counter()
        with pytest.raises(UserError) as error:
            import_checkpoint(str(path), "koniq10k")
        took, peak = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if marker.exists() or "\n" in str(error.value) or len(str(error.value)) > 500 or peak > 200e6 or took > 30:
            failures.append((name, str(error.value), peak, took))
    gate("G4", "pickles as checkpoints to import", cases=len(files), failures=len(failures))
    assert failures == []
