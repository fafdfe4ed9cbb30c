"""params.yaml, checked as a whole before any work: unknown, missing or mistyped keys are errors with file and line.

YAML is read by ruamel.yaml, as DVC writes it: PyYAML reads the `3e-05` that `dvc exp run -S` leaves as a string.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from charm.images.limits import LIMITS, Colour, MaxEdge
from charm.inputs.settings import SETTINGS, InputSettings, check_length
from charm.runtime import fields
from charm.runtime.errors import UserError, first_line
from charm.runtime.fields import MOST_TOKENS, Count, Draws, Fraction, Sha256
from charm.runtime.schema import OneOf, Pattern, Range, SettingError, build
from charm.tokenization import settings as tokens
from pipeline.settings.recipes import AUTO_KEYS, DATASETS, DESCRIBED, fill_in_recipe

NonNegative = Annotated[float, Range(0)]


@dataclass(frozen=True)
class TokenParams:
    """Settings of charm.CharmTokenizer."""

    coarse_ratio: tokens.CoarseRatio
    num_scales: tokens.NumScales
    budget: tokens.Budget
    native_share: tokens.Share
    threshold: tokens.Threshold
    drop: tokens.Drop
    fit: tokens.Fit
    saliency_coverage: tokens.Coverage
    redraw: tokens.Redraw


# A block for each input, with the settings that it has besides those of TokenParams. Its module is for pickle.
InputParams = make_dataclass("InputParams", SETTINGS.items(), frozen=True, namespace={"__module__": __name__})


@dataclass(frozen=True)
class ManifestParams:
    root: str | None
    path_column: str
    score_columns: list[str]
    score_range: list[float]
    accuracy_threshold: float  # in the units of score_range
    split_column: str | None
    group_column: str | None
    test_share: Fraction
    val_share: Fraction
    max_edge: MaxEdge | None
    max_pixels: Annotated[int, Range(1, LIMITS.max_pixels)]
    colour: Colour
    max_reject_frac: Fraction
    leaks: Literal["refuse", "allow"]


@dataclass(frozen=True)
class ShardParams:
    samples_per_shard: Count
    encoding: Literal["jpeg", "raw"]
    jpeg_quality: Annotated[int, Range(1, 100)]


@dataclass(frozen=True)
class NoParams:
    pass


@dataclass(frozen=True)
class ScoreParams:
    coarse_patch_sizes: list[Count]  # pixels


@dataclass(frozen=True)
class SamHqParams:
    prompt: fields.Prompt
    box_threshold: Fraction
    text_threshold: Fraction
    top_k: Count  # boxes
    hq_token_only: bool
    detector: str
    sam: fields.SamName
    sam_checkpoint: str | None
    sam_sha256: Sha256 | None


@dataclass(frozen=True)
class SaliencyParams:
    backend: Literal["mbd", "sam_hq"]
    sam_hq: SamHqParams


@dataclass(frozen=True)
class ImportanceParams:
    random: NoParams
    frequency: ScoreParams
    gradient: ScoreParams
    entropy: ScoreParams
    saliency: SaliencyParams


@dataclass(frozen=True)
class PosEmbedParams:
    mode: Literal["bilinear", "bicubic"]
    antialias: bool
    fit: Literal["grid", "additive"]


@dataclass(frozen=True)
class LongTailParams:
    """Settings of charm.model.long_tail; without pairs and similarity it is off."""

    pairs: Annotated[int, Range(0, 1)]  # mixed samples per step
    tau_1: Annotated[float, Range(1e-3)]
    tau_2: NonNegative
    similarity: NonNegative  # weight of the term

    @property
    def is_on(self) -> bool:
        return self.pairs > 0 or self.similarity > 0


@dataclass(frozen=True)
class FeatureParams:
    layers: list[Count] | None  # None: auto
    draws: Draws


@dataclass(frozen=True)
class TrainParams:
    mode: Literal["fine_tune", "head"]
    head: fields.Head
    pos_embed: fields.PosEmbedTraining
    scale_embed: Literal["learnt", "frozen", "none"]
    normalize: bool
    loss: Literal["auto", "l1", "mse", "emd"]
    epochs: Count
    batch_size: Count  # images
    learning_rate: NonNegative
    min_learning_rate: NonNegative
    warmup_epochs: NonNegative
    weight_decay: NonNegative
    layer_decay: Annotated[float, Range(1e-3, 1)]
    resizer_rate: NonNegative
    clip_norm: NonNegative
    ema: Annotated[float, Range(0, 0.999999)]
    patience: Annotated[int, Range(0)]  # epochs
    mixout: Annotated[float, Range(0, 0.99)]
    long_tail: LongTailParams
    flip: Fraction
    rotate: Fraction
    grey: Fraction


@dataclass(frozen=True)
class EvaluateParams:
    draws: Draws
    train_scores: bool = False


@dataclass(frozen=True)
class ReportParams:
    gallery: Count  # images


@dataclass(frozen=True)
class HardwareParams:
    device: str
    processes: Count
    loader_workers: Annotated[int, Range(0, 1024)]  # of each process
    remote: str | None  # address of a folder
    micro_batch: Count | None  # images; None: auto
    precision: Literal["float32", "bfloat16", "float16"]
    compile: bool
    grad_checkpointing: bool
    checkpoint_minutes: NonNegative
    tracker: Literal["none", "tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True)
class DaskParams:
    address: str | None
    workers: Count | None
    memory: Annotated[str, Pattern(r"auto|\d+(\.\d+)? ?([kMGT]i?)?B", "auto, or a size such as 4GB")]


@dataclass(frozen=True)
class Params:
    labels: str
    dataset: Literal[
        "demo", "csv", "hf", "folder", "stars", "ava", "para", "tad66k", "aadb", "baid", "spaq", "koniq10k"
    ]
    selection: tokens.Selection
    tokenizer: Annotated[str, OneOf(tuple(SETTINGS))]
    backbone: fields.BackboneName  # becomes a folder and part of a command in dvc.yaml
    pretrained: bool
    checkpoint: str | None
    checkpoint_sha256: Sha256 | None
    max_seq_len: tokens.SeqLen | None  # None: the length of an input that its size defines
    seed: fields.Seed
    inputs: InputParams  # type: ignore[valid-type]
    tokens: TokenParams
    manifest: ManifestParams
    shards: ShardParams
    importance: ImportanceParams
    pos_embeds: PosEmbedParams
    features: FeatureParams
    train: TrainParams
    evaluate: EvaluateParams
    report: ReportParams
    hardware: HardwareParams
    dask: DaskParams

    @property
    def input_settings(self) -> InputSettings:
        """The block of the input that `tokenizer` names."""
        found: InputSettings = getattr(self.inputs, self.tokenizer)
        return found


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Reads and checks params.yaml; a UserError says file, line and key of what is wrong."""
    return check_params(read_document(path), path)


def read_document(path: Path) -> dict[str, Any]:
    """Reads a params.yaml as it stands, with the lines of its keys; a UserError says where it is no YAML."""
    try:
        node = YAML(typ="rt").load(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply to be read; expected one section per stage") from error
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # bytes that are no text have none
        place = f"{path}:{mark.line + 1}" if mark else path
        raise UserError(f"{place}: not valid YAML: {getattr(error, 'problem', first_line(error))}") from error
    if not isinstance(node, dict):
        raise UserError(f"{path}: expected keys and values, one section per stage")
    return node


def check_params(node: dict[str, Any], path: Path) -> Params:
    """Checks what a params.yaml holds, and replaces `auto` in it; a UserError says file, key and, if known, line."""
    fill_in_recipe(node)
    try:
        params = build(Params, node)
    except SettingError as error:
        auto = "; auto takes the recipe's value" if ".".join(map(str, error.keys)) in AUTO_KEYS else ""
        raise UserError(f"{path}:{_line_of(node, error.keys)}: {error.message}{auto}") from error
    for key, problem in (*_find_label_clashes(params), *_find_training_clashes(params)):
        raise UserError(f"{path}:{_line_of(node, tuple(key.split('.')))}: {key}: {problem}")
    try:
        if params.max_seq_len is not None and (patch_size := _patch_size_of(params.backbone)):
            check_length(params.tokenizer, params.input_settings, patch_size, params.max_seq_len)
    except ValueError as error:
        raise UserError(f"{path}:{_line_of(node, ('max_seq_len',))}: {error}") from error
    return params


def _find_label_clashes(params: Params) -> Iterator[tuple[str, str]]:
    """Yields key and problem of settings of labels and tokens that are right by themselves and do not go together."""
    manifest, low_high = params.manifest, params.manifest.score_range
    if len(low_high) != 2 or not low_high[0] < low_high[1]:
        yield "manifest.score_range", "expected [lowest, highest]"
    elif params.dataset in DESCRIBED and not low_high[0] <= manifest.accuracy_threshold < low_high[1]:
        told = f"expected a score within score_range and below its end, {low_high}, or none or all are good"
        yield "manifest.accuracy_threshold", told
    for key, datasets in {"split_column": ("csv", "hf", "koniq10k"), "group_column": ("csv", "hf")}.items():
        if getattr(manifest, key) and params.dataset not in datasets:
            told = f"it is read with dataset: {' | '.join(datasets)}; leave it empty with dataset: {params.dataset}"
            yield f"manifest.{key}", told
    ratio, scales = params.tokens.coarse_ratio, params.tokens.num_scales
    if scales == 3 and ratio != 2:
        yield "tokens.coarse_ratio", f"expected 2 with num_scales: 3 (coarse patches of 2p, 3p and 4p), got {ratio}"
    if params.max_seq_len is None and params.input_settings.has_budget:
        yield "max_seq_len", f"{params.tokenizer} needs a number of tokens, or auto"
    scores = getattr(params.importance, params.selection)
    patch_size = _patch_size_of(params.backbone) if isinstance(scores, ScoreParams) else None
    if patch_size and params.input_settings.reads_scores:
        size = patch_size * (4 if scales == 3 else ratio)
        if size not in scores.coarse_patch_sizes:  # else found only after hours of making maps
            told = f"tokens and backbone need scores for coarse patches of {size} pixels: add {size}"
            yield f"importance.{params.selection}.coarse_patch_sizes", told


def _find_training_clashes(params: Params) -> Iterator[tuple[str, str]]:
    """Yields key and problem of settings of training and evaluation that do not go together."""
    train = params.train
    if train.min_learning_rate > train.learning_rate:  # the cosine would rise
        told = f"expected at most train.learning_rate, {train.learning_rate:g}, got {train.min_learning_rate:g}"
        yield "train.min_learning_rate", told
    if train.warmup_epochs >= train.epochs:  # the rate would never be the full one
        told = f"expected fewer than train.epochs, {train.epochs}, got {train.warmup_epochs:g}"
        yield "train.warmup_epochs", f"{told}; auto takes the recipe's value"
    own = params.dataset in ("csv", "hf")
    bins = len(params.manifest.score_columns) if own else DATASETS[params.dataset].num_bins
    if train.loss != "auto" and (train.loss == "emd") != (bins > 1):
        labels = f"distributions of {bins} bins, which need emd" if bins > 1 else "scores, which need l1 or mse"
        yield "train.loss", f"{train.loss} does not fit labels that are {labels}; use auto"
    if train.normalize and params.backbone == "charm_demo":
        yield "train.normalize", "charm_demo is not pre-trained: there is no mean and deviation to normalize with"
    if params.max_seq_len is not None and params.evaluate.draws * params.max_seq_len > MOST_TOKENS:
        told = f"expected at most {MOST_TOKENS // params.max_seq_len} with max_seq_len: {params.max_seq_len}"
        yield "evaluate.draws", f"{told}, got {params.evaluate.draws}"
    if train.long_tail.is_on and (params.hardware.micro_batch or params.hardware.processes > 1):
        yield "train.long_tail", "it relates all images of a step: expected one process, and hardware.micro_batch: auto"


def _patch_size_of(backbone: str) -> int | None:
    """Returns the patch size, pixels, from a name of timm's plain ViTs; None if only building the model would tell."""
    if backbone == "charm_demo":
        return 14
    found = re.match(r"(?:vit|deit|deit3|naflexvit)_.*_patch(\d+)", backbone)
    return int(found[1]) if found else None


def _line_of(node: Any, keys: tuple[str, ...]) -> int:
    """Returns the line of the innermost of these keys, or of the next outer key that the file has."""
    line = 1
    for key in keys:
        if not isinstance(node, CommentedMap) or key not in node.lc.data:
            break
        line = node.lc.key(key)[0] + 1
        node = node[key]
    return line
