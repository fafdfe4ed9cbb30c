"""Solves a linear head on frozen features: ridge regression; layer, pooling and penalty by cross-validation."""

from dataclasses import dataclass, replace

import numpy as np

from charm.model.frozen import list_heads
from charm.model.metrics import srcc
from charm.runtime.errors import UserError

PENALTIES = np.logspace(0, 6, 13)  # on standardized features; a weight's own sum of squares is the number of images
FOLDS = 5


@dataclass(frozen=True)
class Features:
    """The features of some images.

    Attributes:
        layers: of the backbone, ascending.
        parts: that tokens were pooled to (charm.model.pooling.PARTS).
        values: floating (N, layers, parts, D), averaged over draws: a linear head scores their mean by its mean score.
    """

    layers: list[int]
    parts: list[str]
    values: np.ndarray

    def rows(self, rows: np.ndarray) -> "Features":
        """Returns the features of some of the images."""
        return replace(self, values=self.values[rows])

    @property
    def choices(self) -> list[tuple[int, str]]:
        """The layers and kinds of heads that there are."""
        return [(layer, head) for layer in self.layers for head in list_heads(self.parts)]

    def of(self, layer: int, head: str) -> np.ndarray:
        """Returns what a kind of head reads at a layer, float64 (N, F)."""
        parts = [self.parts.index(part) for part in head.split("_")]
        found: np.ndarray = self.values[:, self.layers.index(layer), parts].astype(np.float64)
        return found.reshape(len(found), -1)


@dataclass(frozen=True)
class Labels:
    """The labels that a head is solved on.

    Attributes:
        targets: float64 (N,), on 0..1.
        groups: of the images, int (N,); a group stays in one fold.
        seed: of the folds.
    """

    targets: np.ndarray
    groups: np.ndarray
    seed: int

    def rows(self, rows: np.ndarray) -> "Labels":
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
    groups, group_of = np.unique(labels.groups, return_inverse=True)
    if len(groups) < 2:
        raise UserError("cross-validation of a head: expected two images, or groups of them, got 1")
    fold = np.random.default_rng(labels.seed).permutation(len(groups))[group_of] % FOLDS
    return [(np.flatnonzero(fold != one), np.flatnonzero(fold == one)) for one in range(min(FOLDS, len(groups)))]


def solve_ridge(features: np.ndarray, targets: np.ndarray, penalties: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solves heads on features, float64 (N, F), with P penalties at once; returns weights, (P, F), and biases, (P,).

    Features are standardized for the penalties, which the weights undo. One decomposition serves all penalties: of
    the features' products (F, F), or of the images' (N, N) where these are fewer.
    """
    mean, deviation = features.mean(0), features.std(0)
    deviation[deviation <= 1e-6 * (1 + np.abs(mean))] = np.inf  # a constant says nothing, rounded or not
    scaled, centred = (features - mean) / deviation, targets - targets.mean()
    is_dual = len(scaled) < scaled.shape[1]
    values, vectors = np.linalg.eigh(scaled @ scaled.T if is_dual else scaled.T @ scaled)
    moments = centred if is_dual else scaled.T @ centred
    solved = vectors @ ((vectors.T @ moments)[:, None] / (values[:, None] + penalties))
    weights = (scaled.T @ solved if is_dual else solved).T / deviation
    return weights, targets.mean() - weights @ mean


def _shift_of(labels: Labels, learnt: np.ndarray) -> float:
    """Returns by how much the mean label of all images exceeds that of those learnt from.

    A fold of high labels leaves the others with a low mean: without the shift, one constant for all images, the folds'
    means alone would order images the wrong way round (SRCC -0.43 on noise, 90 images).
    """
    return float(labels.targets.mean() - labels.targets[learnt].mean())


def try_heads(features: Features, labels: Labels) -> list[Candidate]:
    """Tries a head on each layer and pooling, by cross-validation; its penalty is that of the least squared error."""
    folds, found = split_folds(labels), []
    for layer, head in features.choices:
        read = features.of(layer, head)
        predicted = np.empty((len(read), len(PENALTIES)))
        for learnt, held_out in folds:
            weights, biases = solve_ridge(read[learnt], labels.targets[learnt], PENALTIES)
            predicted[held_out] = read[held_out] @ weights.T + biases + _shift_of(labels, learnt)
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
        known, own = features.rows(learnt), labels.rows(learnt)
        chosen = choose_head(try_heads(known, own))
        weights, bias = solve_head(known, own, chosen)
        scores = features.of(chosen.layer, chosen.head)[held_out] @ weights + bias
        predicted[held_out] = scores + _shift_of(labels, learnt)
    return predicted
