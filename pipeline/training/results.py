"""metrics.json: how the model did on the test images, and which images these were; all on the scale of the labels."""

import csv
import io
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from charm.model.config import METRICS, EvaluationConfig
from charm.runtime.errors import UserError
from charm.runtime.schema import build
from pipeline.work.store import damaged, write_json


@dataclass(frozen=True)
class Results:
    """What `evaluate` found."""

    evaluation: EvaluationConfig  # the metrics, with intervals
    # interval_reach, interval_coverage: half the width of the scores' intervals of LEVEL (charm.model.config), and the
    # fraction of the test images whose label lies within; None where validation is too small
    interval_reach: float | None
    interval_coverage: float | None
    draws: int  # of each image's patches
    best_epoch: int  # that the model is of
    parameters: int  # of the model
    # val_plcc, val_srcc, val_acc: of that epoch, on the validation images
    val_plcc: float | None
    val_srcc: float | None
    val_acc: float | None
    # train_plcc, train_srcc, train_acc: of the training images, not augmented; None unless asked for
    train_plcc: float | None
    train_srcc: float | None
    train_acc: float | None
    # dataset, split_sha256, listed, packed, rejected, leaks, notes: as in dataset.json
    dataset: str
    split_sha256: str
    listed: int
    packed: int
    rejected: dict[str, int]
    leaks: int
    notes: dict[str, int]
    saliency_empty_rate: float | None  # share of the images in which nothing stands out; None where no mask is read
    # share of the test images whose object covers no coarse patch enough; None where no mask is read
    saliency_small_rate: float | None
    # of a head that was solved, as in charm.model.config.SolvedConfig; None for others
    cross_validation: EvaluationConfig | None = None

    def to_json(self) -> dict[str, Any]:
        """Flattens the metrics to `srcc`, `srcc_low`, `srcc_high`, as `dvc metrics` shows them; `cv_srcc` and so on."""
        rated = {"": self.evaluation, "cv_": self.cross_validation}
        flat = {
            f"{prefix}{name}": value
            for prefix, found in rated.items()
            if found is not None
            for name, value in _flatten(found).items()
        }
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        return flat | {name: value for name, value in own.items() if name not in ("evaluation", "cross_validation")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Results":
        """Undoes `to_json`; raises ValueError or LookupError for what that does not give."""
        crossed = _unflatten(values, "cv_") if "cv_scored" in values else None
        rated = {"evaluation": _unflatten(values), "cross_validation": crossed}
        own = {one.name for one in fields(cls)}
        return build(cls, rated | {key: values[key] for key in own & values.keys()})

    def write(self, path: Path) -> None:
        write_json(path, self.to_json())


_ENDS = {"value": "", "low": "_low", "high": "_high"}


def _flatten(found: EvaluationConfig) -> dict[str, Any]:
    flat = {f"{name}{_ENDS[end]}": value for name, ends in found.metrics.items() for end, value in ends.items()}
    return flat | {"scored": found.scored, "draw_spread": found.draw_spread}


def _unflatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    metrics = {name: {end: values[f"{prefix}{name}{tail}"] for end, tail in _ENDS.items()} for name in METRICS}
    return {"metrics": metrics} | {name: values[prefix + name] for name in ("scored", "draw_spread")}


def read_results(path: Path) -> Results:
    """Reads metrics.json; raises UserError if it is missing or damaged."""
    try:
        return Results.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise damaged(path, error) from error


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads a CSV file of a run, such as history.csv; raises UserError if it is missing."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; run dvc repro") from error
    return list(csv.DictReader(io.StringIO(text, newline="")))
