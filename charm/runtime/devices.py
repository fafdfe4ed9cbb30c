"""The device that models run on, a GPU where there is one or the device of a name, and their precision there."""

import torch

from charm.runtime.errors import UserError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Opens a device by name; "auto" takes a GPU if there is one, and one of several processes the GPU `local_rank`.

    Several processes do not share Apple's GPU: its collectives are missing in torch.
    """
    if name == "auto":
        is_apple = local_rank is None and torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if is_apple else "cpu"
    if local_rank is not None and name.startswith("cuda"):
        if name != "cuda":
            raise UserError(f"hardware.device: {name!r} is one device for several processes; use cuda")
        name = f"cuda:{local_rank}"
    return open_device(name)


def open_device(name: str) -> torch.device:
    """Opens a device by its torch name; raises UserError if there is no such device."""
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:  # no such device, or torch was built without it
        raise UserError(
            f"device {name!r} cannot be used here ({error}); try auto (hardware.device, --device)"
        ) from error


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Returns a context with matrix products in one of PRECISIONS; a CharmViT keeps pixels and scores in float32."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "float32")
