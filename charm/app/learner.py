"""What `charm teach` has learnt so far: a head on the features of a folder, its ranking, and the model's folder."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from charm.app.answers import STARS, Answers
from charm.app.image_folder import ImageFolder
from charm.hub import list_versions, write_model_folder
from charm.images.find import escape_path
from charm.model.bootstrap import rate
from charm.model.config import DataConfig, EvaluationConfig, LabelConfig, SolvedConfig, TrainingConfig
from charm.model.frozen import build_solved
from charm.model.solving import Candidate, Features, Labels, choose_head, cross_predict, solve_head, try_heads
from charm.runtime.disk import fingerprint, write_csv
from charm.runtime.errors import UserError
from charm.scorer import CharmScorer

ENOUGH = 20  # labels, before which nothing is learnt
_NESTED = 500  # labels, at most, of which the choice of the head is cross-validated, too: 10 s; it tells ever less
_PACE = 0.5  # seconds from the end of one solution to the next: the images' features need the cores, too
DATASET = "own-photographs"  # in the config of the model
_MEANING = "how much one person likes it, who gave stars to such photographs"


@dataclass(frozen=True)
class Solved:
    """A head that was solved on some labels, and how well heads like it agree with the labels that they had not seen.

    Attributes:
        chosen: what the head reads.
        solution: its weights, float64 (F,), and its bias.
        agreement: by cross-validation.
    """

    chosen: Candidate
    solution: tuple[np.ndarray, float]
    agreement: EvaluationConfig


class Learner:
    """Learns from stars and ratings, anew whenever there are others.

    Args:
        folder: of the images.
        answers: their stars.
        ratings: path -> rating. If all of them are on 1..5, they are stars; else stars are mapped onto the range of the
            ratings, one star onto the lowest and five onto the highest.

    Attributes:
        scale: of the labels.
        solved: None while there are too few labels, or equal ones.
        ranking: key and unit score of all images with features, the highest first; empty without a solution.

    Raises:
        UserError: the ratings are all equal, and no stars, or their range is not finite.
    """

    def __init__(self, folder: ImageFolder, answers: Answers, ratings: Mapping[str, float]) -> None:
        self.folder, self.answers, self.ratings = folder, answers, ratings
        low, high = min(ratings.values(), default=STARS[0]), max(ratings.values(), default=STARS[-1])
        if STARS[0] <= low and high <= STARS[-1]:
            low, high = STARS[0], STARS[-1]
        elif not 0 < high - low < math.inf:
            problem = f"ratings are from {low:g} to {high:g}"
            raise UserError(f"--ratings: {problem}: expected stars of 1 to 5, or another finite range of two at least")
        self.scale = LabelConfig(1, (float(low), float(high)), low / 2 + high / 2, _MEANING)
        self.solved: Solved | None = None
        self.ranking: list[tuple[str, float]] = []
        self._learnt: dict[str, float] = {}
        self._changed = Event()

    def tell(self) -> None:
        """Says that there are new features or answers."""
        self._changed.set()

    def run(self, stop: Event) -> None:
        """Learns whenever something has changed, until `stop` is set and told."""
        while not stop.is_set():
            self._changed.wait()
            self._changed.clear()
            self.learn()
            stop.wait(_PACE)

    def list_labels(self) -> dict[str, float]:
        """Lists the labels of images that are in the folder, on 0..1, by key; a star counts more than a rating."""
        low, high = self.scale.score_range
        found: dict[str, float] = {}
        for key, paths in list(self.folder.paths.items()):
            rated = [self.ratings[path] for path in paths if path in self.ratings]
            if rated:
                found[key] = (sum(rated) / len(rated) - low) / (high - low)
        for key, stars in self.answers.stars.items():
            if stars is not None and key in self.folder.paths:
                found[key] = (stars - STARS[0]) / (STARS[-1] - STARS[0])
        return found

    def learn(self) -> None:
        """Solves a head if there are other labels than before, and ranks all images that have features."""
        labels = {key: label for key, label in self.list_labels().items() if key in self.folder.values}
        if labels != self._learnt:
            is_enough = len(labels) >= ENOUGH and len(set(labels.values())) > 1
            self.solved = self._solve(labels) if is_enough else None
            self._learnt = labels
        self.ranking = [] if self.solved is None else self._rank(self.solved)

    def _solve(self, labels: dict[str, float]) -> Solved:
        keys = sorted(labels)  # the same head whatever the order of the answers
        features, targets = self._gather(keys), np.array([labels[key] for key in keys])
        given = Labels(targets, np.arange(len(keys)), 0)
        # Of such small matrices threads make nothing but noise: 200 labels take 2 s of computing, with two threads 14.
        with threadpool_limits(1, "blas"):
            chosen = choose_head(try_heads(features, given))
            scores = cross_predict(features, given) if len(keys) <= _NESTED else chosen.predicted
            agreement = rate(scores[:, None], targets, self.scale.score_range, self.scale.accuracy_threshold, 0)
            return Solved(chosen, solve_head(features, given, chosen), agreement)

    def _gather(self, keys: list[str]) -> Features:
        values = np.stack([self.folder.values[key] for key in keys])
        return Features(self.folder.layers, self.folder.parts, values)

    def _rank(self, solved: Solved) -> list[tuple[str, float]]:
        keys, scores = list(self.folder.values), []
        weights, bias = solved.solution
        for start in range(0, len(keys), 1000):  # as float64 they take twice their space
            read = self._gather(keys[start : start + 1000]).of(solved.chosen.layer, solved.chosen.head)
            scores += (read @ weights + bias).tolist()
        return sorted(zip(keys, scores, strict=True), key=lambda one: (-one[1], one[0]))

    def to_score(self, unit_score: float) -> float:
        """Returns a score on the scale of the labels, within it."""
        low, high = self.scale.score_range
        return low + (high - low) * min(1.0, max(0.0, unit_score))

    def write(self, scorer: CharmScorer, out: Path) -> None:
        """Writes the model's folder, out/model, and out/ranking.csv, with a row for each file; needs a solution."""
        assert self.solved is not None
        chosen, base = self.solved.chosen, scorer.config
        vit: Any = scorer.model
        model, config = build_solved(vit, base.model, chosen.layer, chosen.head, self.solved.solution)
        taught, start = base.data.dataset, base.training
        started_from = f"{base.model.backbone} trained on {taught}" if taught else start.started_from
        described = replace(
            base,
            model=config,
            labels=self.scale,
            data=DataConfig(DATASET, fingerprint(self._learnt), "", {"rated": len(self._learnt)}),
            training=TrainingConfig(1, start.edge, started_from, start.licence),
            versions=list_versions(),
            evaluation=None,
            val_percentiles=None,
            calibration=None,
            solved=SolvedConfig(chosen.layer, chosen.penalty, self.solved.agreement),
        )
        write_model_folder(out / "model", model.state_dict(), described)
        write_csv(out / "ranking.csv", ("path", "score", "given", "reason"), self._list_rows())

    def _list_rows(self) -> list[tuple[object, ...]]:
        """Lists path, score, given label and the reason without a score: the best first, then what has no score."""
        (low, high), folder = self.scale.score_range, self.folder
        given = {key: low + (high - low) * label for key, label in self.list_labels().items()}
        rows: list[tuple[object, ...]] = [
            (escape_path(path), self.to_score(score), given.get(key), "")
            for key, score in self.ranking
            for path in folder.paths[key]
        ]
        scored = {path for key, _ in self.ranking for path in folder.paths[key]}
        left = [one.path for one in folder.files if one.path not in scored]
        return rows + [(escape_path(path), None, None, folder.reasons.get(path, "not looked at yet")) for path in left]
