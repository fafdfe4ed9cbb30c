"""The folder of a trained model: written, read, and described by a card for people.

The folder is laid out as model hubs expect it:

    model.safetensors   the tensors of a CharmViT
    config.json         what it takes to score images with it, and what it was made from; it knows the sha256 of the
                        tensors and of its own rest, so that damage cannot pass for another model
    README.md           the model card, for people
"""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from charm.runtime.disk import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

# torch and jinja2 are imported in functions: whoever needs only the config need not wait seconds for torch.

AnyPath = str | os.PathLike[str]
CARD_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
MODEL_FILES = ("model.safetensors", "config.json", "README.md")
_FORMAT = 1  # of config.json


def encode_model(tensors: "dict[str, Tensor]", config: dict[str, Any]) -> dict[str, bytes]:
    """The files of a model's folder by name, but its card. Equal models give equal bytes.

    Args:
        tensors: `state_dict` of a CharmViT.
        config: anything that JSON can hold.
    """
    from safetensors.torch import save

    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    facts = {"library_name": "charm", "format": _FORMAT, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    facts = config | facts
    whole = facts | {"config_sha256": _digest(facts)}
    return {
        "model.safetensors": weights,
        "config.json": json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n",
    }


def read_config(folder: AnyPath) -> dict[str, Any]:
    """Reads the config of a model's folder; needs no torch.

    Raises:
        OSError: the file is missing.
        ValueError: it is damaged, was changed, or is of another kind.
    """
    path = Path(folder) / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
        is_whole = config.pop("config_sha256") == _digest(config)
        is_known = config["library_name"] == "charm" and config["format"] == _FORMAT
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        raise ValueError(f"{path} is not the description of a Charm model, or damaged") from None
    if not is_whole:
        raise ValueError(f"{path} is not as it was written: damaged, or changed by hand")
    if not is_known:
        raise ValueError(f"{path} has format {config['format']!r} of {config['library_name']!r}: expected {_FORMAT}")
    return config


def read_model(folder: AnyPath) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """Reads the tensors and the config of a model's folder; nothing in it is executed.

    Raises:
        OSError: a file is missing.
        ValueError: a file is damaged, was changed, or is of another kind; says which.
    """
    from safetensors.torch import load

    config = read_config(folder)
    path = Path(folder) / "model.safetensors"
    weights = path.read_bytes()
    if hashlib.sha256(weights).hexdigest() != config["weights_sha256"]:
        raise ValueError(f"{path} is damaged, or not the file that config.json describes")
    try:
        return load(weights), config
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error})") from error


def _digest(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def write_model_folder(folder: Path, tensors: "dict[str, Tensor]", config: dict[str, Any]) -> None:
    """Writes model.safetensors, config.json and README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    card = {"README.md": render_card(config).encode()}
    for name, data in (encode_model(tensors, config) | card).items():
        with atomic_write(folder / name) as file:
            file.write(data)


def render_card(config: dict[str, Any]) -> str:
    """The model card, Markdown with the head that hubs read, of what the config says."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from charm.model.metrics import METRICS

    environment = Environment(
        loader=FileSystemLoader(CARD_TEMPLATE.parent),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(CARD_TEMPLATE.name).render(config, names=METRICS)
