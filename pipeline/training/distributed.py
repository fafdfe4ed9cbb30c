"""Several processes of one training: started here or by torchrun, each on a device of its own.

Each process is a rank from 0 to world_size - 1. Rank 0 alone prints and writes. What goes between them are tensors.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from charm.runtime.errors import UserError, first_line
from charm.runtime.waiting import within

_RENDEZVOUS = "CHARM_RENDEZVOUS"  # where `run_ranks` lets its processes meet; torchrun has variables of its own
_MEETING = timedelta(minutes=5)  # for the others to come
_TIMEOUT = timedelta(minutes=30)  # for a rank that is gone, or writes a checkpoint
_GRACE = 60  # seconds that a process is given to save and end
_PATIENCE = 10  # seconds in which who started the ranks notices the one that failed, and ends the others


@dataclass(frozen=True)
class ProcessGroup:
    """This process among all; the only one by default."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0


def is_launched() -> bool:
    """Tells whether this process was started as one of several, by `launch_processes` or torchrun."""
    return os.environ.keys() >= {"RANK", "WORLD_SIZE", "LOCAL_RANK"}


def launch_processes(count: int, module: str) -> None:
    """Runs `python -m module` in so many processes on this machine; ends all as soon as one fails.

    Raises:
        UserError: one was killed.
        SystemExit: one failed, with its exit code, after it said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"WORLD_SIZE": str(count), _RENDEZVOUS: f"file://{folder}/rendezvous"}
        shared = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
        if sys.platform == "linux":  # nothing listens to other machines
            shared |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        environment = shared | environment
        children = []
        with contextlib.ExitStack() as files:
            for rank in range(count):
                # What goes wrong everywhere is said once, by rank 0.
                errors = files.enter_context(open(f"{folder}/{rank}.err", "wb")) if rank else None
                own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                children.append(subprocess.Popen([sys.executable, "-m", module], env=own, stderr=errors))
            failed = _wait_for(children)
        if failed is None:
            return
        # Where rank 0 failed alike while it was being ended, it has said the same.
        if failed and not children[0].returncode == children[failed].returncode > 0:
            sys.stderr.write(Path(folder, f"{failed}.err").read_text())
        code = children[failed].returncode
        if code < 0:
            raise UserError(f"rank {failed} was killed by signal {-code}; what is made is kept (out of memory?)")
        raise SystemExit(code)


def _wait_for(children: list["subprocess.Popen[bytes]"]) -> int | None:
    """Returns the first child to fail, None if all end well; leaves no child running, even if stopped itself."""
    failed = None
    try:
        while failed is None and any(child.poll() is None for child in children):
            time.sleep(0.1)
            failed = next((rank for rank, child in enumerate(children) if child.poll()), None)
    finally:
        for child in children:
            child.terminate()
        deadline = time.monotonic() + _GRACE
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
            child.kill()
            child.wait()
    return failed


@contextlib.contextmanager
def join_process_group() -> Iterator[ProcessGroup]:
    """Yields this process's place among the ranks; UserError if the others do not come, or another one is gone."""
    if not is_launched():
        yield ProcessGroup()
        return
    own = _meet()
    rank = own.rank
    try:
        with contextlib.redirect_stdout(sys.stdout if rank == 0 else None):
            yield own
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        time.sleep(_PATIENCE)
        raise UserError(f"rank {rank} lost the others; one of them says why") from error
    finally:
        if dist.is_initialized():  # its threads would abort an interpreter that ends
            dist.destroy_process_group()


def _meet() -> ProcessGroup:
    """Meets the other ranks where the environment says; raises UserError if they do not come."""
    place = os.environ.get(_RENDEZVOUS, "env://")
    try:
        rank, world_size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        # The store's own limit does not hold where another server listens.
        meeting = rendezvous(place, rank, world_size, timeout=_MEETING)
        store, *_ = within(_MEETING.total_seconds() + 5, lambda: next(meeting))
        store.set_timeout(_MEETING)
        dist.init_process_group(store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT)
    except ValueError as error:  # a variable is missing or no number
        raise UserError(
            f"RANK and WORLD_SIZE are set, as by torchrun: {first_line(error)}; unset them, or use it"
        ) from error
    except (RuntimeError, TimeoutError) as error:
        names = ("MASTER_ADDR", "MASTER_PORT")
        address = ":".join(os.environ.get(name, "?") for name in names) if place == "env://" else place
        others = f"not all of {world_size} processes came to {address} within {_MEETING.total_seconds():g} s"
        raise UserError(f"rank {rank}: {others} ({first_line(error)})") from error
    return ProcessGroup(rank, world_size, local_rank)


def all_reduce_sum(*values: float) -> list[float]:
    """Returns the sums over all ranks, the same on each; no rank goes on before all have called it."""
    if not dist.is_initialized():
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return [float(value) for value in total]


def all_gather_rows(keys: list[str], rows: Tensor) -> tuple[list[str], Tensor]:
    """Returns every rank's rows, in the order of their keys, on all ranks.

    Args:
        keys: ASCII, all of one length.
        rows: float (N, K), on the CPU; N may differ between ranks.
    """
    if not dist.is_initialized():
        return keys, rows
    sizes = torch.zeros(dist.get_world_size(), 2, dtype=torch.int64)  # count of rows and length of keys of each rank
    sizes[dist.get_rank()] = torch.tensor([len(keys), len(keys[0]) if keys else 0])
    dist.all_reduce(sizes)
    counts, length = sizes[:, 0].tolist(), int(sizes[:, 1].max())
    letters = torch.tensor([list(key.encode()) for key in keys], dtype=torch.uint8).reshape(len(keys), length)
    every_letters, every_row = (_gather_padded(part, counts) for part in (letters, rows))
    found = [bytes(word.tolist()).decode() for word in every_letters]
    order = sorted(range(len(found)), key=found.__getitem__)
    return [found[place] for place in order], every_row[order]


def _gather_padded(part: Tensor, counts: list[int]) -> Tensor:
    padded = part.new_zeros(max(counts), part.shape[1])
    padded[: len(part)] = part
    every = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(every, padded)
    return torch.cat([one[:count] for one, count in zip(every, counts, strict=True)])
