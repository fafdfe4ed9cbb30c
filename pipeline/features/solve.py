"""Solves a linear head on frozen features: ridge regression; layer, pooling and penalty by cross-validation."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from charm.model.metrics import srcc
from charm.runtime.errors import UserError
from pipeline.features.read import Features

PENALTIES = np.logspace(0, 6, 13)  # on standardized features; a weight's own sum of squares is the number of images
FOLDS = 5


@dataclass(frozen=True)
class Labels:
    """targets: float64 (N,), on 0..1; groups: of the images, that stay in one fold; seed: of the folds."""

    targets: np.ndarray
    groups: np.ndarray
    seed: int

    def of(self, rows: np.ndarray) -> "Labels":
        return Labels(self.targets[rows], self.groups[rows], self.seed)


@dataclass(frozen=True)
class Candidate:
    """A head that may be chosen: what it reads, its best penalty, and its scores of images that it has not seen."""

    layer: int
    head: str
    penalty: float
    predicted: np.ndarray
    srcc: float


def split_folds(labels: Labels) -> list[tuple[np.ndarray, np.ndarray]]:
    """Splits rows into (learnt from, held out), FOLDS times, no group in both.

    Raises:
        UserError: there are fewer than two groups.
    """
    from sklearn.model_selection import GroupKFold

    count = min(FOLDS, len(np.unique(labels.groups)))
    if count < 2:
        raise UserError("train.mode: head: cross-validation needs two training images or groups at least, got 1")
    folds = GroupKFold(count, shuffle=True, random_state=labels.seed % 2**32)
    return list(folds.split(labels.targets, groups=labels.groups))


def solve_ridge(features: np.ndarray, targets: np.ndarray, penalties: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solves heads on features, float64 (N, F), with P penalties at once; returns weights, (P, F), and biases, (P,)."""
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    # A penalty for each of as many equal targets: the features' products are summed up once for all.
    ridge: Any = Ridge(alpha=penalties, solver="cholesky")
    ridge.fit(scaler.transform(features), np.tile(targets[:, None], (1, len(penalties))))
    weights = ridge.coef_.reshape(len(penalties), -1) / scaler.scale_
    return weights, ridge.intercept_ - weights @ scaler.mean_


def try_heads(features: Features, labels: Labels) -> list[Candidate]:
    """Tries a head on each layer and pooling, by cross-validation; its penalty is that of the least squared error."""
    folds, found = split_folds(labels), []
    for layer, head in features.choices:
        read = features.of(layer, head)
        predicted = np.empty((len(read), len(PENALTIES)))
        for learnt, held_out in folds:
            weights, biases = solve_ridge(read[learnt], labels.targets[learnt], PENALTIES)
            predicted[held_out] = read[held_out] @ weights.T + biases
        best = int(((predicted - labels.targets[:, None]) ** 2).mean(0).argmin())
        scores = predicted[:, best]
        found.append(Candidate(layer, head, float(PENALTIES[best]), scores, srcc(scores, labels.targets)))
    return found


def choose_head(candidates: list[Candidate]) -> Candidate:
    """Chooses the head that orders images best; of equals, and where no order is defined, the first."""
    return max(candidates, key=lambda one: np.nan_to_num(one.srcc, nan=-1.0))


def solve_head(features: Features, labels: Labels, chosen: Candidate) -> tuple[np.ndarray, float]:
    """Solves a chosen head on all images; returns its weights, float64 (F,), and its bias."""
    read = features.of(chosen.layer, chosen.head)
    weights, biases = solve_ridge(read, labels.targets, np.array([chosen.penalty]))
    return weights[0], float(biases[0])


def cross_predict(features: Features, labels: Labels) -> np.ndarray:
    """Scores each image by a head that was chosen and solved without its fold, float64 (N,)."""
    predicted = np.empty(len(labels.targets))
    for learnt, held_out in split_folds(labels):
        known, own = Features(features.layers, features.parts, features.values[learnt]), labels.of(learnt)
        chosen = choose_head(try_heads(known, own))
        weights, bias = solve_head(known, own, chosen)
        predicted[held_out] = features.of(chosen.layer, chosen.head)[held_out] @ weights + bias
    return predicted
