"""Which GPU a worker takes, on a machine that need not have any."""

from pathlib import Path

import pytest
import torch

from charm.runtime.errors import UserError
from charm.saliency import gpus
from charm.saliency.gpus import claim_gpu


def test_workers_of_a_machine_take_different_gpus(tmp_path: Path) -> None:
    """Each claim is a worker: locks are per opened file."""
    assert [claim_gpu(["0", "1", "2"], tmp_path / "gpus") for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_gpu_is_known_by_its_name_however_a_worker_counts(tmp_path: Path) -> None:
    """A launcher may show each worker all GPUs, its own first."""
    assert claim_gpu(["2", "3", "0", "1"], tmp_path) == 0
    assert claim_gpu(["3", "0", "1", "2"], tmp_path) == 0
    assert claim_gpu(["2", "3", "0", "1"], tmp_path) == 2
    assert claim_gpu(["3", "2"], tmp_path) == 0


def test_several_gpus_are_shared_out_and_one_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [gpus.name_worker_device(name) for name in ("auto", "cuda", "auto")] == ["cuda:0", "cuda:1", "cuda:0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,4")
    assert [gpus.name_worker_device("auto") for _ in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert gpus.name_worker_device("cuda:1") == "cuda:1"
    assert gpus.name_worker_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert gpus.name_worker_device("auto") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpus.name_worker_device("auto") == "cpu"


def test_unknown_device_is_one_line() -> None:
    with pytest.raises(UserError, match=r"device 'cuda:7' cannot be used here \(.+\); try auto"):
        gpus.choose_worker_device("cuda:7")
