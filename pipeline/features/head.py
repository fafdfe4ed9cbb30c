"""The run of train.mode: head: a head is chosen and solved on the features of the training images, and published."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from charm.hub import write_model_folder
from charm.model.bootstrap import bootstrap_intervals, rate
from charm.model.config import EvaluationConfig, SolvedConfig, TrainingConfig, format_metric
from charm.model.frozen import build_solved, hash_weights
from charm.model.metrics import score_agreement
from charm.model.solving import Candidate, Features, Labels, choose_head, cross_predict, solve_head, try_heads
from charm.runtime.disk import write_csv
from pipeline.features.read import read_features
from pipeline.features.start import start_frozen
from pipeline.manifest.table import Manifest
from pipeline.settings.models import describe_start, vit_config
from pipeline.settings.params import Params
from pipeline.training.artifacts import DATA, Inputs
from pipeline.training.publish import describe_model
from pipeline.training.tracker import RUN, RUN_LENGTH, open_tracker
from pipeline.training.trainer import HISTORY

FEW = 2000  # images, at most, whose agreement is measured on all of them: on a fifth of 111 it was -0.59 to 0.15
_RESAMPLES = 200  # for the interval of each candidate
HEADS = ("layer", "head", "penalty", "srcc", "low", "high", "chosen")


def train_head(params: Params, inputs: Inputs, made_from: str, out: Path) -> None:
    """Writes the model's folder, heads.csv with a row for each head that was tried, history.csv and losses.csv.

    Args:
        params: of the run.
        inputs: that it reads.
        made_from: the run's fingerprint, by which trackers know it.
        out: folder to write to.
    """
    tracker = open_tracker(made_from[:RUN_LENGTH], "train", params)  # first, since it may not open
    manifest, start = inputs.manifest, start_frozen(params)
    features = read_features(DATA / "features", inputs.images, manifest.keys, hash_weights(start))
    labels = _label(manifest, params.seed)
    in_split = {name: np.flatnonzero(manifest.table["split"].to_numpy() == name) for name in ("train", "val")}
    train = in_split["train"]
    tried = try_heads(features.rows(train), labels.rows(train))
    chosen = choose_head(tried)
    solution = solve_head(features.rows(train), labels.rows(train), chosen)
    scores = features.of(chosen.layer, chosen.head) @ solution[0] + solution[1]
    record = _record(manifest, labels, scores, in_split)
    crossed = _cross_validate(manifest, features, labels)

    model, config = build_solved(start, vit_config(params, 1), chosen.layer, chosen.head, solution)
    training = TrainingConfig(1, manifest.train_edge, *describe_start(params, start))
    described = replace(
        describe_model(params, inputs, start.patch_size, training),
        model=config,
        solved=SolvedConfig(chosen.layer, chosen.penalty, crossed),
    )
    write_model_folder(out, model.state_dict(), described)
    _write_heads(out / "heads.csv", tried, chosen, manifest, labels.rows(train))
    write_csv(out / "history.csv", HISTORY, [[f"{record[name]:.6g}" for name in HISTORY]])
    write_csv(out / "losses.csv", ("step", "loss"), [(0, repr(record["train_loss"]))])
    (out / RUN).write_text(made_from[:RUN_LENGTH])
    with closing(tracker):
        tracker.add_history([record])
    what = f"{chosen.head} of layer {chosen.layer}, penalty {chosen.penalty:.3g}"
    print(f"train: {what}: SRCC {chosen.srcc:.3f} by cross-validation on {len(train)} training images")


def _label(manifest: Manifest, seed: int) -> Labels:
    """Returns the mean score of each image; an image without a group is one of its own."""
    groups = [group or key for group, key in zip(manifest.table["group"].to_pylist(), manifest.keys, strict=True)]
    return Labels(manifest.targets @ manifest.unit_bins, np.unique(groups, return_inverse=True)[1], seed)


def _record(
    manifest: Manifest, labels: Labels, scores: np.ndarray, in_split: dict[str, np.ndarray]
) -> dict[str, float]:
    """Returns the one row of history.csv: the mean absolute error on the training images, agreement on validation."""
    low, high = manifest.facts.score_range
    train, val = in_split["train"], in_split["val"]
    agreement = score_agreement(scores[val], labels.targets[val], manifest.unit_threshold)
    agreement["mae"] *= high - low
    loss = float(np.abs(scores[train] - labels.targets[train]).mean())
    of_validation = {f"val_{name}": value for name, value in agreement.items()}
    return {"epoch": 1, "learning_rate": 0.0, "train_loss": loss} | of_validation


def _cross_validate(manifest: Manifest, features: Features, labels: Labels) -> EvaluationConfig | None:
    """Rates the way of choosing and solving a head on all images, if these are few; None if they are many."""
    if len(labels.targets) > FEW:
        return None
    scores, facts = cross_predict(features, labels)[:, None], manifest.facts
    found = rate(scores, labels.targets, facts.score_range, facts.accuracy_threshold, labels.seed)
    print(f"train: SRCC {format_metric(**found.metrics['srcc'])} by cross-validation over all {found.scored} images")
    return found


def _write_heads(path: Path, tried: list[Candidate], chosen: Candidate, manifest: Manifest, labels: Labels) -> None:
    """Writes each head that was tried with its SRCC on images that it had not seen, and the 95 % interval."""
    rows = []
    for one in tried:
        settings = manifest.unit_threshold, labels.seed, _RESAMPLES
        low, high = bootstrap_intervals(one.predicted, labels.targets, *settings)["srcc"]
        numbers = [f"{number:.6g}" for number in (one.penalty, one.srcc, low, high)]
        rows.append([one.layer, one.head, *numbers, int(one is chosen)])
    write_csv(path, HEADS, rows)
