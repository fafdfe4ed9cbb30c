"""params.yaml, checked as a whole before any work: unknown, missing or mistyped keys are errors with file and line.

YAML is read by ruamel.yaml, as DVC writes it: PyYAML reads the `3e-05` that `dvc exp run -S` leaves as a string.
"""

import dataclasses
import math
import re
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from charm.runtime.errors import UserError, did_you_mean
from pipeline.settings.recipes import AUTO_KEYS, DATASETS, choose_recipe


@dataclass(frozen=True)
class Range:
    """Least and greatest value that a number may have."""

    least: float
    most: float = math.inf


Share = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(1)]
NonNegative = Annotated[float, Range(0)]


@dataclass(frozen=True)
class TokenParams:
    """Settings of charm.CharmTokenizer."""

    coarse_ratio: Annotated[int, Range(2, 4)]
    num_scales: Annotated[int, Range(2, 3)]
    budget: Literal["fixed", "fill", "share"]
    native_share: Share
    threshold: Annotated[float, Range(1)]
    drop: Literal["uniform", "low_first"]
    fit: Literal["nearest", "pad"]
    saliency_coverage: Annotated[float, Range(1e-6, 1)]
    redraw: Literal["epoch", "once"]


@dataclass(frozen=True)
class ManifestParams:
    root: str | None
    path_column: str
    score_columns: list[str]
    score_range: list[float]
    accuracy_threshold: float  # in the units of score_range
    split_column: str | None
    test_share: Share
    val_share: Share
    max_edge: Annotated[int, Range(32)] | None  # pixels
    max_pixels: Annotated[int, Range(1, 100_000_000)]  # the most that the later stages decode
    max_reject_frac: Share
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
    prompt: str
    box_threshold: Share
    text_threshold: Share
    top_k: Count  # boxes
    hq_token_only: bool
    detector: str
    sam: Literal["vit_tiny", "vit_b", "vit_l", "vit_h"]
    sam_checkpoint: str | None
    sam_sha256: str | None


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


@dataclass(frozen=True)
class TrainParams:
    head: Literal["cls", "cls_mean", "mean"]
    pos_embed: Literal["frozen", "trainable"]
    normalize: bool
    loss: Literal["auto", "l1", "mse", "emd"]
    epochs: Count
    batch_size: Count  # images
    learning_rate: NonNegative
    min_learning_rate: NonNegative
    warmup_epochs: NonNegative
    weight_decay: NonNegative
    layer_decay: Annotated[float, Range(1e-3, 1)]
    clip_norm: NonNegative
    ema: Annotated[float, Range(0, 0.999999)]
    patience: Annotated[int, Range(0)]  # epochs
    flip: Share
    rotate: Share


@dataclass(frozen=True)
class EvaluateParams:
    draws: Count


@dataclass(frozen=True)
class ReportParams:
    gallery: Count  # images


@dataclass(frozen=True)
class HardwareParams:
    device: str
    processes: Count
    loader_workers: Annotated[int, Range(0, 1024)]  # of each process
    remote: str | None  # address of a folder
    micro_batch: Count | None  # images
    precision: Literal["float32", "bfloat16", "float16"]
    compile: bool
    grad_checkpointing: bool
    checkpoint_minutes: NonNegative


@dataclass(frozen=True)
class DaskParams:
    address: str | None
    workers: Count | None
    memory: str


@dataclass(frozen=True)
class Params:
    labels: str
    dataset: Literal["demo", "csv", "ava", "para", "tad66k", "aadb", "baid", "spaq", "koniq10k"]
    selection: Literal["random", "frequency", "gradient", "entropy", "saliency"]
    tokenizer: Literal["charm", "standard", "standard_384", "padding", "ms", "hr_ms"]
    backbone: str
    pretrained: bool
    checkpoint: str | None
    checkpoint_sha256: str | None
    max_seq_len: Count
    seed: Annotated[int, Range(0, 2**63 - 1)]
    tokens: TokenParams
    manifest: ManifestParams
    shards: ShardParams
    importance: ImportanceParams
    pos_embeds: PosEmbedParams
    train: TrainParams
    evaluate: EvaluateParams
    report: ReportParams
    hardware: HardwareParams
    dask: DaskParams


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Reads and checks the file.

    Raises:
        UserError: one line with file, line and key.
    """
    try:
        node = YAML(typ="rt").load(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply to be read; expected one section per stage") from error
    except YAMLError as error:  # bytes that are no text
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(node, CommentedMap):
        raise UserError(f"{path}: expected keys and values, one section per stage")
    _fill_in_recipe(node)
    params: Params = _build(Params, node, path, "", 1)
    # The name becomes a folder and part of a command in dvc.yaml.
    if not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", params.backbone):
        _fail(path, node, "backbone", f"backbone: {params.backbone!r} is not a name of a timm model")
    if not re.fullmatch(r"auto|\d+(\.\d+)? ?([kMGT]i?)?B", params.dask.memory):
        _fail(
            path, node["dask"], "memory", f"dask.memory: expected auto, or a size such as 4GB, got {params.dask.memory}"
        )
    low_high = params.manifest.score_range
    if len(low_high) != 2 or not low_high[0] < low_high[1]:
        _fail(path, node["manifest"], "score_range", "manifest.score_range: expected [lowest, highest]")
    if params.dataset == "csv" and not low_high[0] <= params.manifest.accuracy_threshold < low_high[1]:
        problem = f"expected a score within score_range and below its end, {low_high}, or none or all are good"
        _fail(path, node["manifest"], "accuracy_threshold", f"manifest.accuracy_threshold: {problem}")
    sam_hq, section = params.importance.saliency.sam_hq, node["importance"]["saliency"]["sam_hq"]
    where = "importance.saliency.sam_hq"
    # The detector reads 256 tokens, each of a letter at least.
    if not re.fullmatch(r"(?=.*\w).{1,200}", sam_hq.prompt):
        _fail(path, section, "prompt", f"{where}.prompt: expected words, at most 200 characters in one line")
    if sam_hq.sam_sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sam_hq.sam_sha256):
        _fail(path, section, "sam_sha256", f"{where}.sam_sha256: expected 64 digits of 0-9a-f, as sha256sum prints")
    _check_together(params, node, path)
    return params


def _check_together(params: Params, node: CommentedMap, path: Path) -> None:
    """Refuses settings that are right by themselves and do not go together, before anything is made with them."""
    train = params.train
    if train.min_learning_rate > train.learning_rate:  # the cosine would rise
        problem = f"expected at most train.learning_rate, {train.learning_rate:g}, got {train.min_learning_rate:g}"
        _fail(path, node["train"], "min_learning_rate", f"train.min_learning_rate: {problem}")
    if train.warmup_epochs >= train.epochs:  # the rate would never be the full one
        problem = f"expected fewer than train.epochs, {train.epochs}, got {train.warmup_epochs:g}"
        _fail(path, node["train"], "warmup_epochs", f"train.warmup_epochs: {problem}; auto takes the recipe's value")
    bins = len(params.manifest.score_columns) if params.dataset == "csv" else DATASETS[params.dataset].num_bins
    if train.loss != "auto" and (train.loss == "emd") != (bins > 1):
        labels = f"distributions of {bins} bins, which need emd" if bins > 1 else "scores, which need l1 or mse"
        _fail(path, node["train"], "loss", f"train.loss: {train.loss} does not fit labels that are {labels}; use auto")
    if train.normalize and params.backbone == "charm_demo":
        problem = "charm_demo is not pre-trained: there is no mean and deviation to normalize with"
        _fail(path, node["train"], "normalize", f"train.normalize: {problem}")
    ratio, scales = params.tokens.coarse_ratio, params.tokens.num_scales
    if scales == 3 and ratio != 2:
        problem = f"expected 2 with num_scales: 3 (coarse patches of 2p, 3p and 4p), got {ratio}"
        _fail(path, node["tokens"], "coarse_ratio", f"tokens.coarse_ratio: {problem}")
    patch_size = 14 if params.backbone == "charm_demo" else _patch_size_of(params.backbone)
    scores = getattr(params.importance, params.selection)
    if patch_size and params.tokenizer == "charm" and isinstance(scores, ScoreParams):
        size = patch_size * (4 if scales == 3 else ratio)
        if size not in scores.coarse_patch_sizes:  # found after hours of making maps otherwise
            where = f"importance.{params.selection}"
            problem = f"tokens and backbone need scores for coarse patches of {size} pixels: add {size}"
            section = node["importance"][params.selection]
            _fail(path, section, "coarse_patch_sizes", f"{where}.coarse_patch_sizes: {problem}")


def _patch_size_of(backbone: str) -> int | None:
    """Pixels, as names of timm have it; None where they do not, and only building the model would tell."""
    found = re.search(r"_patch(\d+)", backbone)
    return int(found[1]) if found else None


def _fill_in_recipe(node: CommentedMap) -> None:
    """Replaces `auto` by what it stands for. A data set that nobody knows is found when the values are checked."""
    train = node.get("train")
    epochs = train.get("epochs") if isinstance(train, CommentedMap) else None
    chosen = str(node.get("dataset")), str(node.get("backbone")), epochs if isinstance(epochs, int) else None
    for key, value in choose_recipe(*chosen).items():
        section, _, name = key.rpartition(".")
        holder = node.get(section) if section else node
        if isinstance(holder, CommentedMap) and holder.get(name) == "auto":
            holder[name] = value


def _fail(path: Path, node: CommentedMap, key: str, message: str) -> None:
    line = node.lc.key(key)[0] + 1 if key in node.lc.data else "?"
    raise UserError(f"{path}:{line}: {message}")


def _build(kind: Any, node: CommentedMap, path: Path, prefix: str, line: int) -> Any:
    """An instance of the dataclass `kind` from a mapping, whose own key is `prefix`, with a dot, in this line."""
    hints = get_type_hints(kind, include_extras=True)
    for key in node:
        if key not in hints:
            _fail(path, node, key, f"unknown key {prefix}{key}{did_you_mean(str(key), list(hints))}")
    values = {}
    for key, hint in hints.items():
        if key not in node:
            raise UserError(f"{path}:{line}: missing key {prefix}{key}")
        if dataclasses.is_dataclass(hint):
            if not isinstance(node[key], CommentedMap):
                _fail(path, node, key, f"{prefix}{key}: expected a section with keys of its own, got {node[key]!r}")
            values[key] = _build(hint, node[key], path, f"{prefix}{key}.", node.lc.key(key)[0] + 1)
        else:
            problem, values[key] = _check(hint, node[key])
            if problem:
                auto = "; auto takes the recipe's value" if f"{prefix}{key}" in AUTO_KEYS else ""
                _fail(path, node, key, f"{prefix}{key}: {problem}{auto}")
    return kind(**values)


def _check(hint: Any, value: Any) -> tuple[str, Any]:
    """A problem, or "" and the value as plain Python type."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return "", None
        return _check(next(arg for arg in get_args(hint) if arg is not types.NoneType), value)
    if origin is Annotated:
        inner, span = get_args(hint)
        problem, value = _check(inner, value)
        if not problem and not span.least <= value <= span.most:
            limits = f"from {span.least} to {span.most}" if span.most < math.inf else f"of at least {span.least}"
            problem = f"expected a number {limits}, got {value}"
        return problem, value
    if origin is Literal:
        known = [str(choice) for choice in get_args(hint)]
        return ("" if value in known else f"{value!r} is not known{did_you_mean(str(value), known)}"), value
    if origin is list:
        if not isinstance(value, list) or not value:
            return f"expected a list of at least one entry, got {value!r}", value
        checked = [_check(get_args(hint)[0], item) for item in value]
        return next((problem for problem, _ in checked if problem), ""), [item for _, item in checked]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and is_number and abs(value) <= sys.float_info.max:  # not infinite, not nan, no integer beyond
        return "", float(value)
    if hint in (int, bool, str) and isinstance(value, hint) and not (hint is int and not is_number):
        return "", hint(value)
    came = next(base.__name__ for base in type(value).__mro__ if base.__module__ == "builtins")  # not ScalarFloat
    return f"expected {hint.__name__}, got {value!r} ({came})", value
