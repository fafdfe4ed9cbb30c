"""The model that params.yaml or a model's config describes."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import torch

from charm.hub import find_model, read_config, read_model
from charm.model import registry
from charm.model.config import ModelConfig, ViTConfig
from charm.model.pos_embed import fit_additive
from charm.model.protocol import Model
from charm.runtime.errors import UserError
from charm.runtime.weights import ENDINGS, list_problems, load_backbone
from pipeline.settings.inputs import sketch_tokenizer
from pipeline.settings.params import Params
from pipeline.work.store import repository_path

_OWN_PARTS = ("head.", "scale_embed", "mask_token", "resizer.")  # of a model, besides its backbone


def build_model(config: ViTConfig, pretrained: bool = False) -> Model:
    """Builds the model that a config describes.

    Raises:
        UserError: the backbone cannot be used, or its weights cannot be downloaded.
    """
    return registry.fetch_model(config, pretrained, "with checkpoint: or pretrained: false")


def start_model(params: Params, num_bins: int, score: float = 0.0) -> Model:
    """Builds the model that training starts from: with the weights of `checkpoint`, or published ones, or none.

    A new head begins with the unit score `score`.

    Raises:
        UserError: a checkpoint is missing, damaged or of another backbone, or weights cannot be downloaded.
    """
    model = build_model(vit_config(params, num_bins), params.pretrained and not params.checkpoint)
    if params.train.mode == "head" and model.scale_embed is not None:
        torch.nn.init.zeros_(model.scale_embed)  # nothing would learn what it says
    if num_bins == 1:
        torch.nn.init.constant_(model.head.bias, score)
    path = find_checkpoint(params)
    if path and (trained := read_start(params)):
        then, now = trained.model, vit_config(params, num_bins)
        anew = ("head.",) * _differs_in_head(then, now) + ("scale_embed",) * _differs_in_scales(trained, params, now)
        _take_over(path, model, anew)
    elif path:
        read = load_backbone(model.backbone, path, params.checkpoint_sha256)
        found, own = read.get("scale_embed"), model.scale_embed
        if found is not None and own is not None and found.shape == own.shape:  # MUSIQ's
            own.data.copy_(found)
    if params.pos_embeds.fit == "additive":
        learnt = model.learnt_grid
        if learnt is None:
            problem = f"{params.backbone} has learnt no position embeddings: expected grid"
            raise UserError(f"params.yaml: pos_embeds.fit: {problem}")
        with torch.no_grad():
            learnt.copy_(fit_additive(learnt))
    start = params.input_settings.resizer_start
    if start and model.resizer is not None:
        with torch.no_grad():
            model.resizer.scale.copy_(torch.tensor(start[0]))
            model.resizer.bias.copy_(torch.tensor(start[1]))
    if params.train.scale_embed == "frozen" and model.scale_embed is not None:
        model.scale_embed.requires_grad_(False)
    return model


def find_checkpoint(params: Params) -> Path | None:
    """Finds the file or folder that `checkpoint` names, of user/name a folder in the hub's cache; None for none.

    Raises:
        UserError: the hub has no such model, or cannot be reached.
    """
    name = params.checkpoint
    path = repository_path(name) if name else None
    return _fetch_once(name) if name and path and not path.exists() and path.suffix not in ENDINGS else path


_fetch_once = functools.cache(find_model)  # all of a run starts from the same files


def read_start(params: Params) -> ModelConfig | None:
    """Reads the config of the trained model that `checkpoint` names; returns None for a file of weights, and for none.

    Raises:
        UserError: the folder is damaged, of another backbone, or has another checksum.
    """
    path = find_checkpoint(params)
    if not path or not path.is_dir():
        return None
    with _naming_checkpoint():
        config, sha256 = read_config(path)
    if config.model.backbone != params.backbone:
        raise UserError(f"checkpoint: {path} is a model of {config.model.backbone}: set backbone to it")
    if params.checkpoint_sha256 and sha256 != params.checkpoint_sha256.lower():
        raise UserError(f"checkpoint: {path} has weights of sha256 {sha256}, and not that of checkpoint_sha256")
    return config


@contextlib.contextmanager
def _naming_checkpoint() -> Iterator[None]:
    """Makes an error about a model folder one line that says where its name stands."""
    try:
        yield
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}"
        raise UserError(f"checkpoint: {problem}; expected a file of weights, or a model's folder") from error
    except ValueError as error:
        raise UserError(f"checkpoint: {error}") from error


def _differs_in_head(then: ViTConfig, now: ViTConfig) -> bool:
    return (then.num_outputs, then.head, then.activation) != (now.num_outputs, now.head, now.activation)


def _differs_in_scales(trained: ModelConfig, params: Params, now: ViTConfig) -> bool:
    """Tells whether scales are others: those of another input may be as many and stand for something else."""
    is_other = now.num_scales > 1 and trained.tokenizer.name != params.tokenizer
    return is_other or trained.model.num_scales != now.num_scales


def _take_over(path: Path, model: Model, anew: tuple[str, ...]) -> None:
    """Fills a model with the tensors of a trained one: all of its backbone, the others where they have its shape.

    Those whose names begin with one of `anew` stay as they are.
    """
    with _naming_checkpoint():
        read = read_model(path).tensors
    own = model.state_dict()
    kept = {name: value for name, value in read.items() if name in own and not name.startswith(anew)}
    fitting = {name: value for name, value in kept.items() if own[name].shape == value.shape}
    missing = [name for name in own.keys() - fitting.keys() if not name.startswith(_OWN_PARTS)]
    if missing:
        raise UserError(f"checkpoint: {path} does not fit the backbone: {list_problems(missing, (), ())}")
    model.load_state_dict(own | fitting)


def describe_changes(params: Params, num_bins: int) -> list[str]:
    """Says in which ways a run goes on differently from how the model was trained that it starts from."""
    trained = read_start(params)
    if trained is None:
        return []
    then, now = trained.model, vit_config(params, num_bins)
    changes = []
    if _differs_in_head(then, now):
        changes.append(f"a new head ({now.head}, {now.num_outputs} outputs; it had {then.head}, {then.num_outputs})")
    if _differs_in_scales(trained, params, now):
        of = f"of {params.tokenizer}; it had those of {trained.tokenizer.name}"
        counts = f"{now.num_scales} scales; it had {then.num_scales}"
        changes.append(f"new scale embeddings ({of if then.num_scales == now.num_scales else counts})")
    elif now.num_scales > 1 and (ratio := trained.tokenizer.cutter["coarse_ratio"]) != params.tokens.coarse_ratio:
        changes.append(f"tokens.coarse_ratio: {params.tokens.coarse_ratio} (it had {ratio})")
    if then.normalize != now.normalize:
        changes.append(f"train.normalize: {str(now.normalize).lower()}, which it was not trained with")
    if trained.tokenizer.name != params.tokenizer:
        changes.append(f"tokenizer: {params.tokenizer} (it had {trained.tokenizer.name})")
    return changes


def describe_start(params: Params, model: Model) -> tuple[str | None, str | None]:
    """Returns the name and licence of the weights that training starts from; None where absent or unknown."""
    if trained := read_start(params):
        return f"{params.backbone} trained on {trained.data.dataset}", trained.training.licence
    if params.checkpoint:
        return Path(params.checkpoint).name, None
    return registry.describe_weights(model) if params.pretrained else (None, None)


def vit_config(params: Params, num_bins: int) -> ViTConfig:
    """Returns the facts that are needed to build the model again."""
    sketch = sketch_tokenizer(params)
    return ViTConfig(
        backbone=params.backbone,
        num_scales=sketch.num_scales if params.train.scale_embed != "none" else 1,
        num_outputs=num_bins,
        head=params.train.head if params.train.mode == "fine_tune" else "mean",  # chosen later, by what it gives
        normalize=params.train.normalize,
        pos_embed=params.train.pos_embed,
        image_edge=params.input_settings.whole_edge,
        num_residuals=sketch.num_residuals,
    )
