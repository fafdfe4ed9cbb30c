"""The folder of a trained model: written, read, described by a card for people, published and found on a hub.

The folder is laid out as model hubs expect it:

    model.safetensors   the tensors of a model of charm.model.registry
    config.json         the facts needed to score images, and the data and settings of the training; it holds the sha256
                        of the tensors and of its own rest, so that damage cannot pass for another model
    README.md           the model card, for people
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from charm.model.config import METRICS, ModelConfig, format_interval
from charm.runtime.disk import atomic_write, name_impostor
from charm.runtime.downloads import NAME, fetch
from charm.runtime.errors import UserError, first_line, in_one_line
from charm.runtime.waiting import hub_address
from charm.tokenization.draws import DRAWS_VERSION

if TYPE_CHECKING:
    from jinja2 import Template
    from torch import Tensor

# torch and jinja2 are imported in functions: reading only the config must not wait seconds for torch.

AnyPath = str | os.PathLike[str]
CARD_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
MODEL_FILES = ("model.safetensors", "config.json", "README.md")
_FORMAT = 1  # of config.json
_LONGEST_CONFIG = 1_000_000  # bytes; they are some 3,000

# Metric -> its name on the hub, https://hf.co/metrics.
_HUB_METRICS = {"plcc": "pearsonr", "srcc": "spearmanr", "krcc": "kendalltau", "acc": "accuracy", "mae": "mae"}


@dataclass(frozen=True)
class SavedModel:
    """The content of a model's folder."""

    config: ModelConfig
    weights_sha256: str  # of model.safetensors, which names the model
    tensors: "dict[str, Tensor]"  # `state_dict` of the model


def encode_model(tensors: "dict[str, Tensor]", config: ModelConfig) -> dict[str, bytes]:
    """Encodes the files of a model's folder, by name, from its `state_dict`; equal models give equal bytes."""
    from safetensors.torch import save

    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    return {
        "model.safetensors": weights,
        "config.json": encode_config(config, weights),
        "README.md": render_card(config).encode(),
    }


def encode_config(config: ModelConfig, weights: bytes) -> bytes:
    """Encodes config.json, which `read_config` reads, for a file of weights."""
    facts = config.to_json() | {
        "library_name": "charm",
        "format": _FORMAT,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    whole = facts | {"config_sha256": _digest(facts)}
    return json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def write_model_folder(folder: AnyPath, tensors: "dict[str, Tensor]", config: ModelConfig) -> None:
    """Writes model.safetensors, config.json and README.md."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, data in encode_model(tensors, config).items():
        with atomic_write(Path(folder) / name) as file:
            file.write(data)


def list_versions() -> dict[str, str]:
    """Lists the versions that a model's config names: of the libraries, and of the way that patches are drawn."""
    return {name: version(name) for name in ("torch", "timm", "numpy")} | {"draws": str(DRAWS_VERSION)}


def find_model(name: AnyPath, revision: str | None = None) -> Path:
    """Returns a model's folder: the one of this name, or that of user/name in the hub's cache, downloaded if need be.

    Only MODEL_FILES are. With a revision, a branch, tag or commit, a folder of the same name is passed over. Raises
    UserError if the hub has no such model, or there is no way to it.
    """
    if not NAME.fullmatch(str(name)) or (revision is None and Path(name).exists()):
        return Path(name)
    return fetch(str(name), MODEL_FILES, revision, f"there is no folder {name} here either")


def publish_folder(folder: AnyPath, name: str, private: bool = False) -> str:
    """Uploads a model's folder to the hub, to user/name, which is made if it is not there; returns its address.

    Raises:
        OSError: a file is missing.
        ValueError: a file is damaged, or not of a Charm model: nothing is uploaded.
        UserError: the hub refuses it, or cannot be reached.
    """
    from huggingface_hub import HfApi

    with refusing(folder):
        read_model(folder)
    api = HfApi(endpoint=hub_address())
    try:
        api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), allow_patterns=list(MODEL_FILES))
    except Exception as error:  # some twenty kinds
        problem = f"cannot publish to {hub_address()}/{name} ({first_line(error)})"
        remedy = "name it user/name; `hf auth login`, or HF_TOKEN with the right to write, says who you are"
        raise UserError(in_one_line(f"{problem}: {remedy}")) from error
    return f"{hub_address()}/{name}"


@contextlib.contextmanager
def refusing(folder: AnyPath) -> Iterator[None]:
    """Makes a ValueError about a model's folder one short line that names the folder, which may be anybody's."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        raise ValueError(in_one_line(text if str(folder) in text else f"{folder}: {text}")) from None


def read_config(folder: AnyPath) -> tuple[ModelConfig, str]:
    """Reads the config of a model's folder, and the sha256 of its weights; needs no torch.

    Raises:
        OSError: the file is missing.
        ValueError: the file is damaged, was changed, is of another kind, or describes an impossible model.
    """
    path = Path(folder) / "config.json"
    try:
        with open(path, "rb") as file:
            facts: dict[str, Any] = json.loads(file.read(_LONGEST_CONFIG))
        is_whole = facts.pop("config_sha256") == _digest(facts)
        kind = facts.pop("library_name"), facts.pop("format")
        weights_sha256 = facts.pop("weights_sha256")
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        raise ValueError(f"{path} is not the description of a Charm model, or damaged") from None
    if not is_whole:
        raise ValueError(f"{path} is not as it was written: damaged, or changed by hand")
    if kind != ("charm", _FORMAT):
        raise ValueError(f"{path} has format {kind[1]!r} of {kind[0]!r}: expected {_FORMAT}")
    try:
        return ModelConfig.from_json(facts), str(weights_sha256)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_model(folder: AnyPath) -> SavedModel:
    """Reads a model's folder; nothing in it is executed.

    Raises:
        OSError: a file is missing.
        ValueError: a file is damaged, was changed, or is of another kind; says which.
    """
    from safetensors.torch import load

    config, sha256 = read_config(folder)
    path = _find_weights(folder)
    weights = path.read_bytes()
    if hashlib.sha256(weights).hexdigest() != sha256:
        raise ValueError(f"{path} is damaged, or not the file that config.json describes")
    try:
        return SavedModel(config, sha256, load(weights))
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error})") from error


def read_weights_header(folder: AnyPath) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Reads type and shape of each tensor in a model's folder, by name, without reading the tensors.

    Raises:
        OSError: the file is missing.
        ValueError: the file is no safetensors file, or longer than its tensors.
    """
    path = _find_weights(folder)
    if impostor := name_impostor(path):
        raise ValueError(f"{path} is {impostor}")
    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            return {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or damaged ({error})") from None


def _find_weights(folder: AnyPath) -> Path:
    path = Path(folder) / "model.safetensors"
    if not path.exists() and path.with_name("model.onnx").is_file():
        raise ValueError(f"{folder} is what `charm export` wrote, for OnnxScorer: name the model's own folder")
    return path


def _digest(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def render_card(config: ModelConfig) -> str:
    """Renders the model card from a config: Markdown, with the head that hubs read."""
    from charm.inputs.preparation import Preparation
    from charm.inputs.settings import SETTINGS

    return _load_card().render(
        vars(config),
        interval=format_interval,
        head=_describe_for_hub(config),
        names=METRICS,
        doubts=config.doubts,
        input=Preparation.from_config(config).tokenizer,
        shows=SETTINGS[config.tokenizer.name].shows,
    )


@cache
def _load_card() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(CARD_TEMPLATE.parent),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(CARD_TEMPLATE.name)


def _describe_for_hub(config: ModelConfig) -> str:
    """Returns the head of a card, YAML, with the results and their intervals as a hub lists them."""
    from huggingface_hub import EvalResult, ModelCardData

    task, dataset, start = "image-classification", config.data.dataset, config.training.started_from
    results = [
        EvalResult(
            task_type=task,
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="test",
            metric_type=_HUB_METRICS[name],
            metric_name=f"{name.upper()} (95 % interval {format_interval(found['low'], found['high'])})",
            metric_value=found["value"],
        )
        for name, found in (config.evaluation.metrics if config.evaluation else {}).items()
        if found["value"] is not None
    ]
    title = f"{config.model.backbone} with {config.tokenizer.name} tokens, trained on {dataset}"
    data = ModelCardData(
        library_name="charm",
        license=config.training.licence or "unknown",
        pipeline_tag=task,
        tags=["image-aesthetic-assessment", "image-quality-assessment", "vision-transformer"],
        base_model=start if start and NAME.fullmatch(start) else None,
        datasets=[dataset],
        model_name=title,
        eval_results=results or None,
    )
    return data.to_yaml()
