"""Images made to do harm: what they cost, what they run, where they lead, and what damage gets past the decoder."""

import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charm.images.decode import decode_image
from charm.images.limits import Limits
from charm.images.quarantine import inspect_in_child
from charm.images.reasons import REASONS, Rejected
from pipeline.manifest.labels import Listed, Listing
from pipeline.manifest.rows import build_rows, inspect_images
from pipeline.manifest.table import read_manifest, write_manifest
from pipeline.settings.params import Params
from pipeline.work.store import read_sidecar
from tests.faults.bombs import REFUSED, encode, large
from tests.faults.conftest import Gate

ROOT = Path(__file__).parents[2]
# Looks at each file named on the command line and says what came of it and what it took.
MEASURE = """
import json, sys, time
from pathlib import Path
from charm.images.limits import Limits
from charm.images.quarantine import inspect_file
for path in sys.argv[1:]:
    started = time.process_time()
    reason = inspect_file(Path(path).parent, Path(path).name, Limits())["reason"]
    seconds = time.process_time() - started
    peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]  # ru_maxrss counts the parent's
    print(json.dumps([reason, seconds, int(peak) / 1000]))
"""


@dataclass(frozen=True)
class Cost:
    """reason: "" = decoded; seconds: of computing; megabytes: the most that its process ever had."""

    reason: str
    seconds: float
    megabytes: float


def measure(*files: Path) -> list[Cost]:
    """What looking at files costs, one after the other in a process of their own."""
    command = [sys.executable, "-c", MEASURE, *map(str, files)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return [Cost(*json.loads(line)) for line in run.stdout.splitlines()]


def write_files(folder: Path, contents: dict[str, bytes]) -> list[Path]:
    for index, content in enumerate(contents.values()):
        (folder / f"{index}").write_bytes(content)
    return [folder / f"{index}" for index in range(len(contents))]


def test_bombs_are_refused_at_once(tmp_path: Path, gate: Gate) -> None:
    costs = dict(zip(REFUSED, measure(*write_files(tmp_path, REFUSED)), strict=True))
    costly = [name for name, cost in costs.items() if cost.seconds > 1 or cost.megabytes > 200]
    decoded = [name for name, cost in costs.items() if cost.reason not in REASONS]
    gate(
        "G6",
        "bombs and lying headers are refused within 1 s and 200 MB",
        cases=len(costs),
        worst_seconds=round(max(cost.seconds for cost in costs.values()), 2),
        worst_megabytes=round(max(cost.megabytes for cost in costs.values())),
        failures=len({*costly, *decoded}),
    )


def test_the_largest_images_are_decoded_within_bounds(tmp_path: Path, gate: Gate) -> None:
    costs = [measure(file)[0] for file in write_files(tmp_path, large())]
    gate(
        "G6",
        "images of up to 100 megapixels are decoded, or refused, within 10 s and 1.5 GB",
        cases=len(costs),
        decoded=sum(cost.reason == "" for cost in costs),
        worst_seconds=round(max(cost.seconds for cost in costs), 2),
        worst_megabytes=round(max(cost.megabytes for cost in costs)),
        failures=sum(cost.seconds > 10 or cost.megabytes > 1500 for cost in costs),
    )
    assert [cost.reason for cost in costs] == ["", "", "", "", "corrupt", "corrupt", "corrupt"]


class Marker:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def test_nothing_in_a_file_or_in_its_name_is_run(tmp_path: Path, gate: Gate) -> None:
    """Pickles, archives, scripts and documents that some decoder or other runs, alone and as the tail of a JPEG."""
    marker = tmp_path / "made by an image"
    touch = f"touch '{marker}'"
    by_name = "touch made-by-a-name"
    payloads = {
        "pickle": pickle.dumps(Marker(marker)),
        "old pickle": pickle.dumps(Marker(marker), protocol=0),
        "torch checkpoint": zipped("archive/data.pkl", pickle.dumps(Marker(marker))),
        "numpy objects": b"\x93NUMPY\x01\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(128)
        + pickle.dumps(Marker(marker)),
        "PostScript": f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%{touch}) (w) file\n".encode(),
        "SVG": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="|{touch}"/></svg>'.encode(),
        "MVG": f"push graphic-context\nfill 'url(https://localhost/x.jpg\"|{touch}\")'\npop graphic-context".encode(),
        "shell": f"#!/bin/sh\n{touch}\n".encode(),
        "YAML": f"!!python/object/apply:os.system ['{touch}']".encode(),
    }
    names = [
        "a.jpg",
        f"$({by_name}).jpg",
        f"`{by_name}`.jpg",
        f"|{by_name}",
        f";{by_name};.jpg",
        "-rf",
        "%s%n",
        "a.pkl",
    ]
    good = encode("JPEG")
    contents = [*payloads.values(), *(good + payload for payload in payloads.values())]
    paths = []
    for index, content in enumerate(contents):
        paths.append(f"{index}/{names[index % len(names)]}")
        (tmp_path / f"{index}").mkdir()
        (tmp_path / paths[-1]).write_bytes(content)
    found = [facts["reason"] for facts in inspect_in_child(tmp_path, paths, Limits())]
    assert found == ["format"] * len(payloads) + [""] * len(payloads)
    ran = [path for path in (marker, Path("made-by-a-name"), ROOT / "made-by-a-name") if path.exists()]
    gate("G4", "payloads in images and in their names are not run", cases=len(paths), failures=len(ran))


ODD_NAMES = (
    "good.jpg",
    "two\nlines.jpg",
    "tab\t.jpg",
    "...",
    "~",
    "=1+1",
    "写真.jpg",
    "a.b.c.jpg",
    "." + "x" * 200,
)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A root with a good image and everything that a file system can hold beside it; secrets are outside."""
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.jpg").write_bytes(encode("JPEG", 48))
    for name in ODD_NAMES:
        (root / name).write_bytes(encode("JPEG"))
    (root / os.fsdecode(b"latin\xe9.jpg")).write_bytes(encode("JPEG"))
    (root / "linked.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "up").symlink_to("..")
    (root / "circle.jpg").symlink_to("circle.jpg")
    (root / "round").symlink_to("round/round")
    (root / "dangling.jpg").symlink_to("nowhere")
    (root / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(root)  # the address of a socket may have 100 characters only
        listener.bind("socket.jpg")
        os.chdir(here)
        yield root
    shutil.rmtree(root)


OUTSIDE = [
    "../secret.jpg",
    "up/secret.jpg",
    "linked.jpg",
    "sub/../../secret.jpg",
    "/etc/hostname",
    "/dev/zero",
    "zero.jpg",
]
OUTSIDE += ["/proc/self/environ", "//etc/passwd", "../" * 40 + "etc/passwd", "up/up/../root/../secret.jpg"]
UNREADABLE = [
    "pipe.jpg",
    "socket.jpg",
    "circle.jpg",
    "round/x.jpg",
    ".",
    "good.jpg/..",
    "nul\0.jpg",
    "x" * 300,
    "x/" * 3000,
]
MISSING = ["dangling.jpg", "nowhere.jpg", "good.jpg/x", "..\\secret.jpg", "file:///etc/passwd", "%2e%2e/secret.jpg"]
NO_TEXT = [os.fsdecode(b"latin\xe9.jpg"), "\ud800", os.fsdecode(b"\xff\xfe")]
GOOD = [*ODD_NAMES, "up/root/good.jpg"]


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_hostile_names_lead_nowhere(place: Path, shipped_params: Params, gate: Gate) -> None:
    """From the labels to the three files of the manifest: every name has its row, and no file from outside is in it."""
    expected = {
        **dict.fromkeys(OUTSIDE, "outside"),
        **dict.fromkeys(UNREADABLE, "unreadable"),
        **dict.fromkeys(MISSING, "missing"),
        **dict.fromkeys(NO_TEXT, "name"),
        **dict.fromkeys(GOOD, ""),
    }
    before = tree(place.parent)
    out = place.parent / "manifest"
    out.mkdir()
    listing = Listing(place, [Listed(path, path, (0.5,), None, "x:1") for path in expected], (0.0, 1.0), 0.5, "nothing")
    inspect_images(str(place), list(expected), 10**6, None, out / "found")
    found = (read_sidecar(out / "found.json") or {})["images"]
    rows = build_rows(listing, found, shipped_params.manifest, seed=0)
    facts = write_manifest(out, rows, listing, "csv")
    assert {row["path"]: row["reason"] for row in rows} == expected
    secret = (place.parent / "secret.jpg").stat().st_size
    escaped = [row for row in rows if row["bytes"] == secret]
    made = {path for path in tree(place.parent) - before if path.split("/")[0] != "manifest"}
    gate(
        "G5",
        "hostile names and files lead to nothing outside of the root, neither read nor written",
        cases=len(expected),
        failures=len(escaped) + len(made),
    )
    table = read_manifest(out).table
    gate(
        "G1",
        "hostile names: listed = packed + rejected",
        cases=len(expected),
        failures=abs(facts.listed - facts.packed - sum(facts.rejected.values())) + abs(len(table) - len(GOOD)),
    )
    assert table["path"].to_pylist() == GOOD


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encode("JPEG"))
    (tmp_path / "a.jpg").chmod(0)
    assert inspect_in_child(tmp_path, ["a.jpg"], Limits()) == [{"reason": "unreadable"}]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make devices")
def test_a_device_below_the_root(tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "zero.jpg", 0o600 | 0o020000, os.makedev(1, 5))
    except OSError:
        pytest.skip("no devices can be made here")
    assert inspect_in_child(tmp_path, ["zero.jpg"], Limits()) == [{"reason": "unreadable"}]


def flip(data: bytes, number: int) -> Iterator[bytes]:
    """Copies with one seeded bit flipped."""
    for bit in np.random.default_rng(0).choice(8 * len(data), number, replace=False).tolist():
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


def outcome(data: bytes, whole: np.ndarray) -> str:
    """refused, equal or other pixels."""
    try:
        pixels = decode_image(data, Limits(max_pixels=10**6)).pixels
    except Rejected:
        return "refused"
    return "equal" if np.array_equal(pixels, whole) else "other"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_bytes(kind: str, gate: Gate) -> None:
    """A PNG has checksums. A JPEG has none: where flipped bits make another valid stream, nobody can know at first
    contact; from then on the sha256 in the manifest, and the checksums of the shard, tell."""
    data = encode(kind, 96)
    whole = decode_image(data).pixels
    flips = Counter(outcome(damaged, whole) for damaged in flip(data, 1000))
    cuts = Counter(outcome(data[:length], whole) for length in range(0, len(data), max(1, len(data) // 500)))
    numbers = {"refused": flips["refused"], "equal_pixels": flips["equal"], "other_pixels": flips["other"]}
    if kind == "PNG":
        gate("G3", "PNG at first contact: flipped bits are refused", cases=1000, failures=flips["other"], **numbers)
    else:
        gate("G6", "JPEG at first contact: flipped bits neither crash nor hang", cases=1000, failures=0, **numbers)
        assert flips["refused"] > 0
    gate("G3", f"{kind} at first contact: files cut short are refused", cases=cuts.total(), failures=cuts["other"])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF", "JPEG2000"])
def test_damaged_files_never_cost_the_child(kind: str, tmp_path: Path, gate: Gate) -> None:
    data = encode(kind, 48)
    damaged = [*flip(data[:400], 300), *flip(data, 300)]
    damaged[:300] = [start + data[400:] for start in damaged[:300]]  # most of the bits that matter are at the start
    paths = [file.name for file in write_files(tmp_path, dict(enumerate(damaged)))]
    reasons = Counter(facts["reason"] for facts in inspect_in_child(tmp_path, paths, Limits()))
    lost = sum(reasons[reason] for reason in ("crashed", "timeout", "memory"))
    gate("G6", f"damaged {kind} files: the decoder survives", cases=len(paths), failures=lost, decoded=reasons[""])
