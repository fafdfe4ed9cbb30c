"""Images in, scores out, by any runtime of the model: draws are batched, predicted and averaged; needs no torch.

An image's score depends on the image and the model alone: patches are drawn by its pixels, its tokens attend to each
other and never to padding. Batch mates, order and the number of threads change no more than rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

from charm.inputs.preparation import Preparation, choose_edge
from charm.model.config import LEVEL, Calibration, ModelConfig
from charm.tokenization.tokens import Tokens

_BATCH_TOKENS = 8192  # of a batch, padding included: 16 images of 512


@dataclass(frozen=True)
class Score:
    """A model's score of an image, on the scale of the labels that it was trained with.

    Attributes:
        score: within `Scorer.score_range`.
        spread: standard deviation of the score over the draws of patches; None with one draw.
        distribution: float64 (num_bins,), the share of each bin of the labels, lowest first; None where the model was
            trained on scores.
        raw: the score before it was clipped to the range, for ranking.
        percentile: how many in 100 of the model's validation images have a lower score; None where nobody knows.
        calibration: of the model; None if it has none, or the image had fewer draws than the validation images.
        score_range: of the labels, which an interval ends within.
    """

    score: float
    spread: float | None
    distribution: np.ndarray | None
    raw: float
    percentile: float | None = None
    calibration: Calibration | None = field(default=None, repr=False)
    score_range: tuple[float, float] = field(default=(-math.inf, math.inf), repr=False)

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """Returns the ends of an interval that holds the label of a fraction `level` of images.

        It is as sure as an image is like those of the model's validation; about others nobody knows. None where the
        model has no calibration, or one of too few images for this level. Raises ValueError if level is not between 0
        and 1.
        """
        reach = None if self.calibration is None else self.calibration.reach(level)
        if reach is None:
            return None
        low, high = self.score_range
        return max(low, self.score - reach), min(high, self.score + reach)


class Scorer(Preparation):
    """Scores images; a subclass says how the model predicts (`predict`).

    Args:
        full_size: whether images may be larger than those of the model's training.
        weights_sha256: of the weights, which names the model; "" if the model comes from no file.

    Attributes:
        score_range: lowest and highest score of the labels.
        unit_bins: float64 (num_outputs,), the score of each output of a distribution on 0..1; a single 1 for scores.
    """

    def __init__(self, config: ModelConfig, device: str, full_size: bool = False, weights_sha256: str = "") -> None:
        edge = choose_edge(config, full_size)
        super().__init__(config.tokenizer, edge, config.seed, config.draws, config.saliency, device, config.colour)
        self.config, self.weights_sha256 = config, weights_sha256
        self.score_range = config.labels.score_range
        count = config.labels.num_bins
        self.unit_bins = np.linspace(0, 1, count) if count > 1 else np.ones(1)

    def predict(self, tokens: Sequence[Tokens], length: int) -> np.ndarray:
        """Returns the model's outputs, float (B, num_outputs), of the first `length` tokens of each image."""
        raise NotImplementedError

    def __repr__(self) -> str:
        facts = {
            "backbone": self.config.model.backbone,
            "tokenizer": self.config.tokenizer.name,
            "score_range": self.score_range,
            "draws": self.draws,
            "device": self.device,
        }
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in facts.items())})"

    @overload
    def __call__(
        self, image: list[Any] | tuple[Any, ...], *, draws: int | None = None, saliency_mask: Any = None
    ) -> list[Score]: ...

    @overload
    def __call__(self, image: Any, *, draws: int | None = None, saliency_mask: Any = None) -> Score: ...

    def __call__(self, image: Any, *, draws: int | None = None, saliency_mask: Any = None) -> Score | list[Score]:
        """Scores an image, or each of a list.

        Args:
            image: an image of any size: a file's path or its bytes, numpy uint8 (H, W, 3) RGB, PIL, or torch uint8
                (3, H, W) RGB; or a list or tuple of them.
            draws: number of draws of patches, whose scores are averaged; None = as in `evaluate`.
            saliency_mask: bool (H, W), True on the salient object; for a list, a list. For models that were trained
                with `selection: saliency`, and for no others.

        Raises:
            ValueError: an image or a mask is not as described.
            OSError: a path cannot be read.

        >>> scorer = CharmScorer.from_pretrained("runs/evaluate/model")  # doctest: +SKIP
        >>> [found.score for found in scorer(["beach.jpg", "street.png"])]  # doctest: +SKIP
        [3.82, 2.07]
        """
        is_one = not isinstance(image, list | tuple)
        images = [image] if is_one else image
        masks = saliency_mask if isinstance(saliency_mask, list | tuple) else [saliency_mask] * len(images)
        if len(masks) != len(images):
            raise ValueError(f"{len(images)} images and {len(masks)} masks: expected one for each")
        count = self.draws if draws is None else draws
        tokens = [self.tokenize(*pair, draws=count) for pair in zip(images, masks, strict=True)]
        scores = self.score_tokens(tokens)
        return scores[0] if is_one else scores

    def score_tokens(self, tokens: Sequence[Sequence[Tokens]]) -> list[Score]:
        """Scores images from their draws by `tokenize`, in batches of sequences of about one length."""
        flat = [one for draws in tokens for one in draws]
        shares = np.empty((len(flat), len(self.unit_bins)))
        for batch in group_by_length([one.seq_len for one in flat]):
            length = max(1, max(flat[index].seq_len for index in batch))
            outputs = np.asarray(self.predict([flat[index] for index in batch], length), np.float64)
            shares[batch] = _softmax(outputs) if len(self.unit_bins) > 1 else outputs
        ends = np.cumsum([len(draws) for draws in tokens])
        return [self._summarize(part) for part in np.split(shares, ends[:-1])] if tokens else []

    def _summarize(self, shares: np.ndarray) -> Score:
        """Averages the draws of an image; shares: float64 (draws, num_outputs)."""
        low, high = self.score_range
        scores = low + (high - low) * (shares @ self.unit_bins)
        raw = float(scores.mean())
        if not math.isfinite(raw):
            raise ValueError("the model gives a score that is no number: its weights are damaged, or of another model")
        distribution = shares.mean(axis=0) if len(self.unit_bins) > 1 else None
        spread = float(scores.std()) if len(scores) > 1 else None
        percentile = rank(raw, self.config.val_percentiles)
        calibration = self.config.calibration if len(scores) >= self.config.draws else None  # fewer draws err more
        return Score(min(max(raw, low), high), spread, distribution, raw, percentile, calibration, self.score_range)


def rank(raw: float, percentiles: Sequence[float] | None) -> float | None:
    """Returns the percentile, 0 to 100, of a score among others, whose 101 percentiles are given; None without them.

    >>> rank(2.5, [0.0] * 50 + [2.0, 3.0] + [9.0] * 49)
    50.5
    """
    if percentiles is None:
        return None
    ends, places = np.asarray(percentiles), np.linspace(0, 100, len(percentiles))
    # From both sides: many equal scores take up a stretch, whose middle is meant.
    return float(np.interp(raw, ends, places) + 100 - np.interp(-raw, -ends[::-1], places)) / 2


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Groups indices of sequences to batches of at most `_BATCH_TOKENS`, padding included; longest first."""
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if not room:
            batches.append([])
            room = max(1, _BATCH_TOKENS // max(1, lengths[index]))
        batches[-1].append(index)
        room -= 1
    return batches
