"""What a trained model is, from the run that made it; and the check that it is used for what it was made for."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from charm.hub import MODEL_FILES, SavedModel, list_versions, read_model
from charm.model.config import (
    DataConfig,
    InputConfig,
    LabelConfig,
    ModelConfig,
    PosEmbedConfig,
    SaliencyConfig,
    TrainingConfig,
)
from charm.model.protocol import Model
from charm.model.registry import restore_model
from charm.runtime.errors import UserError, in_one_line
from pipeline.settings.inputs import build_cutter, sketch_tokenizer
from pipeline.settings.models import vit_config
from pipeline.settings.params import Params
from pipeline.settings.recipes import flatten
from pipeline.shards.columns import read_column_facts
from pipeline.training.artifacts import DATA, Inputs
from pipeline.work.store import remake


def describe_model(params: Params, inputs: Inputs, patch_size: int, training: TrainingConfig) -> ModelConfig:
    """Describes the model of a run, whose backbone has patches of this many pixels."""
    facts, made = inputs.manifest.facts, inputs.pos_embeds.facts
    own, cutter = params.input_settings, build_cutter(params, patch_size)
    length = own.length(patch_size) or cutter.max_seq_len
    return ModelConfig(
        model=vit_config(params, facts.num_bins),
        tokenizer=InputConfig(params.tokenizer, asdict(own), replace(cutter, max_seq_len=length).settings),
        pos_embeds=PosEmbedConfig(made["mode"], made.get("antialias", False)),
        labels=LabelConfig(facts.num_bins, facts.score_range, facts.accuracy_threshold, facts.meaning),
        max_edge=facts.max_edge,
        seed=params.seed,
        draws=1,  # until `evaluate` has tried more
        saliency=_describe_saliency(params),
        data=DataConfig(facts.dataset, facts.sha256, facts.split_sha256, facts.splits),
        training=training,
        versions=list_versions(),
        colour=facts.colour,
    )


def describe_masks(params: Params) -> dict[str, Any] | None:
    """Returns the facts of the saliency masks that the input reads; None if it reads none, or they are elsewhere."""
    column = DATA / "importance"
    is_here = (column / "column.json").is_file()  # it is not where shards are read from hardware.remote
    if sketch_tokenizer(params).reads != "saliency" or not is_here:
        return None
    return read_column_facts(column)


def _describe_saliency(params: Params) -> SaliencyConfig | None:
    """Says how the masks were made that the model was trained with; None where it needs none, or nobody here knows."""
    found = describe_masks(params)
    if found is None:
        return None
    detector = params.importance.saliency.sam_hq.detector if found["backend"] == "sam_hq" else None
    return SaliencyConfig(found["backend"], found["settings"], detector)


def read_trained(folder: Path) -> SavedModel:
    """Reads the folder of a model; raises UserError with what to do if a file is missing or damaged."""
    try:
        return read_model(folder)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; run dvc repro") from error
    except ValueError as error:
        named = [folder / name for name in MODEL_FILES if str(folder / name) in str(error)]
        raise UserError(f"{error}; {remake(named[0] if named else folder / 'config.json')}") from error


def load_trained(folder: Path, params: Params, inputs: Inputs) -> tuple[Model, SavedModel]:
    """Loads the model of a folder that the stage `train` wrote, and its description.

    It may be scored on other data, made with other versions, but not as another model, with other labels or tokens.

    Raises:
        UserError: missing, damaged, or made for something else: the fields that differ.
    """
    saved = read_trained(folder)
    config = saved.config
    wanted = describe_model(params, inputs, config.tokenizer.cutter["patch_size"], config.training)
    if params.train.mode == "head":  # whose head, and where the backbone ends for it, training chose
        chosen: dict[str, Any] = {"head": config.model.head, "shape": config.model.shape}
        wanted = replace(wanted, model=replace(wanted.model, **chosen))
    found, expected = (
        flatten({name: facts[name] for name in ("model", "tokenizer", "labels", "pos_embeds", "seed")})
        for facts in map(asdict, (config, wanted))
    )
    differing = [
        f"{name} {found.get(name)!r} (here {value!r})"
        for name, value in expected.items()
        if json.dumps(found.get(name)) != json.dumps(value)  # a tuple comes back as a list
    ]
    if differing:
        raise UserError(f"{folder}: the model was made for {', '.join(differing)}; run dvc repro")
    try:
        return restore_model(config.model, saved.tensors), saved
    except (ValueError, RuntimeError) as error:  # another version of timm, which has no such backbone, for example
        reason = in_one_line(" ".join(str(error).split()))
        raise UserError(f"{folder}: {reason}; run dvc repro") from error
