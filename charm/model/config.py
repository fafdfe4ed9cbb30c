"""The description of a trained model: all it takes to build it, to give it images, and to interpret its scores.

The stages `train` and `evaluate` write it as config.json beside the weights; nothing here needs torch.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from charm.images.limits import Colour, MaxEdge
from charm.runtime import fields
from charm.runtime.schema import Range, SettingError, build

LEVEL = 0.9  # of the intervals that are shown where nobody asks for another
MOST_ERRORS = 200  # of a Calibration: within half a percent of the level asked, on the side of caution
METRICS = ("plcc", "srcc", "krcc", "acc", "mae")  # in the paper's order, then the two that it does not have


@dataclass(frozen=True)
class ViTShape:
    """The size of a plain ViT if not that of its name; `edge`, pixels, of the images that its positions are for."""

    width: Annotated[int, Range(1, 4096)]
    depth: Annotated[int, Range(1, 64)]
    heads: Annotated[int, Range(1, 64)]
    edge: Annotated[int, Range(1, 8192)]


@dataclass(frozen=True)
class ViTConfig:
    """The arguments of a model of charm.model.registry that decide its parameters; see there."""

    backbone: fields.BackboneName
    num_scales: Annotated[int, Range(1, 3)]
    num_outputs: Annotated[int, Range(1, 1000)]
    head: fields.Head
    normalize: bool
    pos_embed: fields.PosEmbedTraining
    image_edge: Annotated[int, Range(1, 8192)] | None = None  # pixels, of images that the input shows whole; or None
    num_residuals: Annotated[int, Range(0, 8)] = 0  # of the input (Tokens.residuals)
    activation: Literal["none", "sigmoid", "sigmoid_fifths"] = "none"  # charm.model.protocol.ACTIVATIONS
    shape: ViTShape | None = None  # of the backbone; None for that of its name


@dataclass(frozen=True)
class InputConfig:
    """What makes tokens of an image."""

    name: str  # a key of charm.inputs.registry.INPUTS
    settings: dict[str, Any]  # that the input has besides those of CharmTokenizer
    cutter: dict[str, Any]  # the arguments of CharmTokenizer; patch_size and max_seq_len are those of every input


@dataclass(frozen=True)
class PosEmbedConfig:
    """The resampling of learnt position embeddings; "rotary" ones are not resampled, and "none" are added."""

    mode: Literal["bilinear", "bicubic", "nearest", "bicubic_offset", "rotary", "none"]
    antialias: bool


@dataclass(frozen=True)
class LabelConfig:
    """The labels that the model was trained on."""

    num_bins: Annotated[int, Range(1, 1000)]  # of the distributions; 1 for scores
    score_range: tuple[float, float]  # lowest and highest score, of distributions that of the first and the last bin
    accuracy_threshold: float  # a score above this counts as good
    meaning: str  # what a high score says of an image


@dataclass(frozen=True)
class SamHqConfig:
    """The settings of SAM-HQ that decide its masks; see charm.saliency.sam_hq.SamHqSettings."""

    prompt: fields.Prompt
    box_threshold: fields.Fraction
    text_threshold: fields.Fraction
    top_k: fields.Count
    hq_token_only: bool
    sam: fields.SamName
    sam_sha256: fields.Sha256
    detector_sha256: fields.Sha256


@dataclass(frozen=True)
class SaliencyConfig:
    """The detector of the masks in the model's training; `settings` (SamHqConfig) and `detector` are of sam_hq."""

    backend: Literal["mbd", "sam_hq"]
    settings: dict[str, Any]
    detector: str | None


@dataclass(frozen=True)
class DataConfig:
    """The images that the model was made from: `splits` counts them, `split_sha256` tells which split each was in."""

    dataset: str
    sha256: str
    split_sha256: str
    splits: dict[str, Annotated[int, Range(0)]]


@dataclass(frozen=True)
class TrainingConfig:
    """Facts about a model's training."""

    best_epoch: Annotated[int, Range(0)]  # counted from 1
    edge: Annotated[int, Range(1)]  # pixels; 99 of 100 training images have no longer edge
    started_from: str | None  # the weights' repository or file; None for none
    licence: str | None  # of these weights, if known


@dataclass(frozen=True)
class EvaluationConfig:
    """Results of a model on the test images; of cross-validation, on all images.

    `metrics` has by name the `value` with the ends of its 95 % interval, `low` and `high`; None where undefined, and
    the ends of too few images. MAE is on the scale of the labels.
    """

    scored: Annotated[int, Range(0)]  # number of images
    draw_spread: float | None  # mean deviation of an image's score over draws, on the labels' scale; None with one draw
    metrics: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class SolvedConfig:
    """A head that was solved on a frozen backbone's features, by ridge regression on the mean score."""

    layer: Annotated[int, Range(1)]  # that it reads, counted from 1; the backbone ends there
    penalty: Annotated[float, Range(0)]  # of the regression, on standardized features
    # Agreement over all images, each scored by a head that was chosen and solved without it; None where the test images
    # are many enough to tell it.
    cross_validation: EvaluationConfig | None


@dataclass(frozen=True)
class Calibration:
    """Errors of a model on the validation images, by which its scores get intervals (split conformal prediction).

    An image of the same kind has a label within `reach(level)` of its score with a probability of at least `level`,
    whatever the model and its errors are like (Vovk et al., 2005; Lei et al., JASA 2018). The errors are not divided
    by the spread over draws: on the built-in data that makes intervals up to 18 % wider at the same coverage, since
    draws say little of how wrong a score is (correlation 0.0 to 0.2).
    """

    images: Annotated[int, Range(1)]  # number of validation images
    # |score - label| of these on the scale of the labels, ascending; of more than MOST_ERRORS at evenly spaced ranks.
    errors: list[Annotated[float, Range(0)]]

    @classmethod
    def of(cls, scores: Sequence[float], labels: Sequence[float]) -> "Calibration":
        """Builds it from the scores and labels of the validation images, one of each at least."""
        errors = sorted(abs(float(score) - float(label)) for score, label in zip(scores, labels, strict=True))
        count = min(len(errors), MOST_ERRORS)
        return cls(len(errors), [errors[math.ceil(rank * len(errors) / count) - 1] for rank in range(1, count + 1)])

    def reach(self, level: float) -> float | None:
        """Returns half the width of an interval, unclipped; None where there are too few images for this level.

        Raises ValueError if level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level={level}: expected a number between 0 and 1, for example 0.9")
        rank = math.ceil((self.images + 1) * level - 1e-9)  # 10 * 0.9 is 9
        if rank > self.images:
            return None
        return self.errors[math.ceil(rank * len(self.errors) / self.images) - 1]


def format_interval(low: float | None, high: float | None, sign: str = "") -> str:
    """Formats the ends of an interval for people; a dash where there is none (None or nan)."""
    if low is None or high is None or math.isnan(low):
        return "\N{EN DASH}"
    return f"{low:{sign}.3f} to {high:{sign}.3f}"


def format_metric(value: float | None, low: float | None, high: float | None) -> str:
    """Formats a metric and its interval for people."""
    return "undefined" if value is None else f"{value:.3f} ({format_interval(low, high)})"


_BUILT_IN = "demo"  # the data set that charm_demo learns from without any weights


def list_doubts(
    dataset: str, started_from: str | None, evaluation: EvaluationConfig | None, solved: SolvedConfig | None = None
) -> list[str]:
    """Lists what speaks against a model's scores, each with what to try; empty if nothing does.

    What cross-validation found of a solved head counts in the place of `evaluation`.
    """
    doubts, published = [], "a backbone with published weights"
    if started_from is None and dataset != _BUILT_IN:
        doubts.append(
            "The backbone started from random weights and knows nothing but these images, which is seldom enough. "
            f"Choose {published} and pretrained: true, or a checkpoint."
        )
    crossed = solved.cross_validation if solved else None
    rated, where = (crossed, "By cross-validation") if crossed else (evaluation, "On the test images")
    if rated is not None:
        value, low, high = (rated.metrics["srcc"][end] for end in ("value", "low", "high"))
        if low is None or low <= 0:
            longer = "" if crossed else ", more epochs, a larger max_seq_len"  # a solved head has no epochs
            sure = "may be" if value is not None and low is None else "is"  # of too few images for an interval
            doubts.append(
                f"{where} the order of the scores {sure} no better than chance: SRCC "
                f"{format_metric(value, low, high)}. What may help: {published} "
                f"(vit_small_patch14_dinov2.lvd142m), more images{longer}."
            )
    return doubts


@dataclass(frozen=True)
class ModelConfig:
    """A model's config.json; before `evaluate` what that finds is None."""

    model: ViTConfig
    tokenizer: InputConfig
    pos_embeds: PosEmbedConfig
    labels: LabelConfig
    max_edge: MaxEdge | None  # pixels; larger images are downscaled first, as they were for training
    seed: fields.Seed
    draws: fields.Draws  # number of draws of patches that an image's score is averaged over
    saliency: SaliencyConfig | None
    data: DataConfig
    training: TrainingConfig
    versions: dict[str, str]  # of the libraries, and of the way that patches are drawn, with which it was trained
    evaluation: EvaluationConfig | None = None
    colour: Colour = "srgb"  # what becomes of wide colours, as it did for training
    # The 101 percentiles, 0 to 100, of the scores of the validation images, not clipped, on the scale of the labels.
    val_percentiles: list[float] | None = None
    calibration: Calibration | None = None
    solved: SolvedConfig | None = None  # how the head was found; None if the model was fine-tuned

    @property
    def doubts(self) -> list[str]:
        return list_doubts(self.data.dataset, self.training.started_from, self.evaluation, self.solved)

    def to_json(self) -> dict[str, Any]:
        """Returns the config as values that JSON can hold; `from_json` undoes it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> "ModelConfig":
        """Builds the config from the values of `to_json`.

        Raises ValueError if a key is unknown or missing, a value is not allowed, or two values contradict each other.
        """
        if not isinstance(values, dict):
            raise ValueError(f"expected keys and values, got {type(values).__name__}")
        config = build(cls, {"val_percentiles": None, "calibration": None, "solved": None} | values)  # older folders
        _check_together(config)
        return config


def _check_together(config: ModelConfig) -> None:
    """Raises SettingError for values that are right by themselves and contradict each other."""
    labels, outputs, known, made = config.labels, config.model.num_outputs, config.val_percentiles, config.calibration
    low, high = labels.score_range
    _expect(0 < high - low < math.inf, "labels.score_range", f"[lowest, highest], got {[low, high]}")
    is_within = low <= labels.accuracy_threshold <= high
    _expect(is_within, "labels.accuracy_threshold", f"within score_range, got {labels.accuracy_threshold}")
    is_same = labels.num_bins == outputs
    _expect(is_same, "labels.num_bins", f"{outputs}, as model.num_outputs, got {labels.num_bins}")
    length = config.tokenizer.cutter.get("max_seq_len")
    is_short = not isinstance(length, int) or config.draws * length <= fields.MOST_TOKENS
    _expect(is_short, "draws", f"at most {fields.MOST_TOKENS} tokens of an image, got {config.draws} draws of {length}")
    if config.saliency is not None and config.saliency.backend == "sam_hq":
        build(SamHqConfig, config.saliency.settings, ("saliency", "settings"))
    if known is not None:
        is_ranked = len(known) == 101 and known == sorted(known)
        _expect(is_ranked, "val_percentiles", f"101 numbers, none below the one before it, got {len(known)}")
    if made:
        is_whole = made.errors == sorted(made.errors) and len(made.errors) == min(made.images, MOST_ERRORS)
        _expect(is_whole, "calibration.errors", f"one of each image, at most {MOST_ERRORS}, ascending")
    crossed = config.solved.cross_validation if config.solved else None
    for rated in filter(None, (config.evaluation, crossed)):
        for name in METRICS:
            found = rated.metrics.get(name, {})
            none = {end for end, value in found.items() if value is None}
            is_known = found.keys() == {"value", "low", "high"} and none in (set(), {"low", "high"}, found.keys())
            _expect(is_known, "evaluation.metrics", f"value, low and high of {name}, all or none, got {found}")


def _expect(is_so: bool, key: str, expected: str) -> None:
    if not is_so:
        raise SettingError(tuple(key.split(".")), f"{key}: expected {expected}")
