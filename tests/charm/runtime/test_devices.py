"""Where models run."""

import pytest
import torch

from charm.runtime.devices import choose_device
from charm.runtime.errors import UserError


def test_a_device_each(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu", local_rank=1) == torch.device("cpu")
    with pytest.raises(UserError, match=r"device 'nonsense' .*; try auto \(hardware\.device, --device\)"):
        choose_device("nonsense")
    with pytest.raises(UserError, match="'cuda:0' is one device for several processes; use cuda"):
        choose_device("cuda:0", local_rank=1)
    with pytest.raises(UserError, match="device 'cuda:1' cannot be used here"):
        choose_device("cuda", local_rank=1)
