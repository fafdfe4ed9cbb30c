"""The store of finished shards, named by what they are made from, outside of DVC's reach.

DVC deletes a stage's output before the stage runs. Finished shards therefore live in a store whose file names are the
sha256 of everything that went into them: settings, code and input. A stage that was killed, or whose input grew, finds
the shards that are already made and makes the rest; at the end the output folder is filled with hard links.
"""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from charm.runtime.disk import atomic_write, file_sha256, fingerprint, fsync_dir, lock_file
from charm.runtime.errors import UserError

RUNS = ("trained", "evaluated")  # kinds of finished runs, a folder each
_RECORD_HEAD = b'{"checksum": "%s",\n'


def store_folder(kind: str) -> Path:
    """Returns the folder of one kind of artifact, below $CHARM_STORE or .charm/store; makes it if it is missing."""
    folder = _store() / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _store() -> Path:
    return Path(os.environ.get("CHARM_STORE") or repository() / ".charm" / "store").resolve()


def repository() -> Path:
    """Returns the repository; a queued experiment runs in a copy at .dvc/tmp/exps/<name>, which has no images."""
    root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
    return Path(*root.parts[: root.parts.index(".dvc")]) if ".dvc" in root.parts else root


def repository_path(path: str) -> Path:
    """Returns a path that the user gave, relative to the repository."""
    return Path(path) if repository() == Path.cwd() else repository() / path


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with sorted keys, so that equal values are equal bytes."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, sort_keys=True, indent=1).encode() + b"\n")


def write_record(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object whose first entry is the sha256 of the rest, so that damage is found when it is read."""
    rest = json.dumps(value, sort_keys=True).encode()[1:] + b"\n"
    with atomic_write(path) as file:
        file.write(_RECORD_HEAD % hashlib.sha256(rest).hexdigest().encode() + rest)


def parse_record(data: bytes) -> dict[str, Any]:
    """Parses the bytes of a file of `write_record`; raises ValueError if they are not as they were written."""
    rest = data[len(_RECORD_HEAD % bytes(64)) :]
    if data != _RECORD_HEAD % hashlib.sha256(rest).hexdigest().encode() + rest:
        raise ValueError("the file is not as it was written")
    record: dict[str, Any] = json.loads(b"{" + rest)
    return record


def read_record(path: Path) -> dict[str, Any]:
    """Reads a file of `write_record`; raises OSError or, as `parse_record` does, ValueError."""
    return parse_record(path.read_bytes())


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """Reads the sidecar of a shard; returns None if the shard does not exist as a whole."""
    try:
        sidecar = read_record(path)
        if "bytes" in sidecar and path.with_suffix(".tar").stat().st_size != sidecar["bytes"]:
            return None
    except (OSError, ValueError):
        return None
    return sidecar


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder for one process at a time; others are queued experiments, or left running by a killed `dvc`."""
    with open(folder / ".lock", "a+") as lock:
        if not lock_file(lock, wait=False):
            lock.seek(0)
            print(f"waiting for {lock.read().strip() or 'a process'}, which makes the same artifacts", flush=True)
            lock_file(lock)
        with contextlib.suppress(OSError):  # on a full disk `prune` has to work
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"process {os.getpid()}".encode())
        yield


def publish(made: Mapping[str, Path], out: Path) -> None:
    """Replaces an output folder as a whole; `made` maps a file name to the file that it is linked to.

    A reader that opens the folder meanwhile, or after a kill, finds all the old files, all the new ones, or no folder.
    """
    out = out.resolve()
    aside, old = (out.with_name(f".{out.name}.{end}") for end in ("new", "old"))
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.parent):
        for left in (aside, old):  # by a process that was killed here
            shutil.rmtree(left, ignore_errors=True)
        aside.mkdir()
        for name, source in made.items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, aside / name)
            except FileNotFoundError:
                raise UserError(f"{source} was removed meanwhile: run the same command again") from None
            except OSError:  # another disk
                with open(source, "rb") as original, atomic_write(aside / name) as copy:
                    shutil.copyfileobj(original, copy)
        fsync_dir(aside)
        if out.exists():
            os.replace(out, old)
        os.replace(aside, out)
        fsync_dir(out.parent)
        shutil.rmtree(old, ignore_errors=True)


def publish_shards(made: Mapping[str, Path], out: Path) -> None:
    """Fills an output folder with both files of each shard; `made` maps a shard's name to its sidecar."""
    publish({f"{name}{end}": path.with_suffix(end) for name, path in made.items() for end in (".tar", ".json")}, out)


def keep_finished(kind: str, made_from: str, out: Path) -> None:
    """Keeps an output folder, which must be whole, in the store under what it was made from, by hard links."""
    target = store_folder(kind) / made_from
    publish({path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}, target)
    kept = {path.relative_to(target).as_posix(): file_sha256(path) for path in target.rglob("*") if path.is_file()}
    write_record(target.with_suffix(".json"), {"files": kept})


def publish_finished(kind: str, made_from: str, out: Path) -> bool:
    """Fills an output folder with the files of `keep_finished`; returns False if the store does not have them whole."""
    kept = store_folder(kind) / made_from
    try:
        files = read_record(kept.with_suffix(".json"))["files"]
        if any(file_sha256(kept / name) != sha256 for name, sha256 in files.items()):
            return False
    except (OSError, ValueError, LookupError):
        return False
    publish({name: kept / name for name in files}, out)
    return True


def mark_changed(root: Path, path: str) -> None:
    """Notes that an image file differs from the manifest: the next manifest opens it, whatever its stat says."""
    _mark_of(root, path).write_text(uuid.uuid4().hex)


def read_mark(root: Path, path: str) -> str:
    """Returns the unique text of the last `mark_changed` of a file; "" if there was none."""
    mark = _mark_of(root, path)
    return mark.read_text() if mark.exists() else ""


def _mark_of(root: Path, path: str) -> Path:
    return store_folder("changed") / fingerprint(str(root.resolve()), path)


def prune(runs: bool = False) -> dict[str, tuple[int, int]]:
    """Removes finished artifacts that have no other name left, in a folder or in DVC's cache, and leftovers of kills.

    Checkpoints of training stay: a run that was stopped may be days of work. Finished runs stay unless `runs`.

    Returns:
        Kind of artifact -> (files removed, bytes freed).
    """
    removed = {}
    for folder in sorted(
        path for path in _store().glob("*") if path.is_dir() and path.name not in ("train", "changed")
    ):
        is_run = folder.name in RUNS
        if is_run and not runs:
            continue
        with locked(folder):
            found = [path for path in (folder.rglob("*") if is_run else folder.iterdir()) if path.is_file()]
            unused = [(path, path.stat()) for path in found if path.name != ".lock"]
            # Sidecars first: a shard without one does not exist, wherever this is stopped.
            unused.sort(key=lambda item: (item[0].suffix != ".json", item[0]))
            gone = [(path, stat) for path, stat in unused if is_run or stat.st_nlink == 1]
            for path, _ in gone:
                path.unlink()
            removed[folder.name] = (len(gone), sum(stat.st_size for _, stat in gone if stat.st_nlink == 1))
    return removed


def damaged(path: object, error: Exception) -> UserError:
    """Returns the error about a file that is missing or not as it was written, with what to do about it."""
    said = " ".join(str(error).split())  # Parquet and others speak in several lines
    return UserError(f"{path}: missing or damaged ({said}); {remake(path)}")


def remake(file: object) -> str:
    """Says what to do about a damaged file.

    Output, store and DVC's cache hold names of one file, and DVC trusts its cache: removing the output alone would
    bring the damage back.
    """
    if not Path(str(file)).exists():
        return "run dvc repro"
    command = f"find . $CHARM_STORE -samefile {shlex.quote(str(file))} -delete"
    return f"remove it under all its names (`{command}`), then run dvc repro"
