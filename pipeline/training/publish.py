"""The folder of a trained model that travels: what charm.scorer needs to score images, and a card for people."""

from typing import Any

from charm.model.metrics import METRICS
from pipeline.settings.inputs import build_cutter, build_tokenizer
from pipeline.settings.params import Params
from pipeline.shards.columns import read_column_facts
from pipeline.training.artifacts import DATA


def describe_scorer(
    params: Params,
    facts: dict[str, Any],
    trained: dict[str, Any],
    metrics: dict[str, Any],
    pos_embeds: dict[str, Any],
) -> dict[str, Any]:
    """The config of a model's folder.

    Args:
        params: of the run.
        facts: dataset.json of the manifest.
        trained: model.json of the stage `train`.
        metrics: metrics.json of the stage `evaluate`.
        pos_embeds: axes.json of the stage `pos_embeds`.
    """
    ends = ("", "_low", "_high")
    return {
        "model": {
            name: trained[name] for name in ("backbone", "num_scales", "num_outputs", "head", "normalize", "pos_embed")
        },
        "tokenizer": {"name": params.tokenizer} | build_cutter(params, trained["patch_size"]).settings,
        "pos_embeds": {"mode": pos_embeds["mode"], "antialias": pos_embeds.get("antialias", False)},
        "labels": {name: facts[name] for name in ("num_bins", "score_range", "accuracy_threshold")},
        "max_edge": facts["max_edge"],
        "seed": params.seed,
        "draws": metrics["draws"],
        "saliency": _describe_saliency(params),
        "data": {name: facts[name] for name in ("dataset", "split_sha256", "splits")},
        "metrics": {name: {end[1:] or "value": metrics[f"{name}{end}"] for end in ends} for name in METRICS},
        "scored": metrics["scored"],
        "training": {name: trained[name] for name in ("best_epoch", "started_from", "licence")},
        "versions": trained["versions"],
    }


def describe_masks(params: Params) -> dict[str, Any] | None:
    """The facts of the saliency masks that the input reads; None if it reads none, or they are elsewhere."""
    column = DATA / "importance"
    is_here = (column / "column.json").is_file()  # it is not where shards are read from hardware.remote
    if build_tokenizer(params, patch_size=14).reads != "saliency" or not is_here:
        return None
    return read_column_facts(column)


def _describe_saliency(params: Params) -> dict[str, Any] | None:
    """How the masks were made that the model was trained with; None where it needs none, or nobody here knows."""
    found = describe_masks(params)
    if found is None:
        return None
    detector = params.importance.saliency.sam_hq.detector if found["backend"] == "sam_hq" else None
    return {"backend": found["backend"], "settings": found["settings"], "detector": detector}
