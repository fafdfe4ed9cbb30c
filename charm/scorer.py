"""CharmScorer: photographs in, scores out, from the folder of a trained model (charm.hub).

An image's score depends on the image and the model alone: patches are drawn by its pixels, its tokens attend to each
other and never to padding. Batch mates, order and the number of threads change no more than rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args, overload

import numpy as np
import torch

from charm.hub import AnyPath, find_model, read_config, read_model, read_weights_header, refusing, write_model_folder
from charm.inputs.preparation import Preparation, choose_edge
from charm.model.axes import PosEmbedAxes
from charm.model.config import ModelConfig
from charm.model.pos_embed import axis_weights
from charm.model.protocol import LearntMode, Model
from charm.model.registry import build_model
from charm.model.vit import PRECISIONS, autocast
from charm.runtime.devices import choose_device
from charm.runtime.weights import list_problems
from charm.tokenization.tokens import Tokens

_FLOATS = ("F16", "BF16", "F32", "F64")  # names of safetensors
_BATCH_TOKENS = 8192  # of a batch, padding included: 16 images of 512


@dataclass(frozen=True)
class Score:
    """A model's score of an image, on the scale of the labels that it was trained with.

    Attributes:
        score: within `CharmScorer.score_range`.
        spread: standard deviation of the score over the draws of patches; None with one draw.
        distribution: float64 (num_bins,), the share of each bin of the labels, lowest first; None where the model was
            trained on scores.
        raw: the score before it was clipped to the range, for ranking.
    """

    score: float
    spread: float | None
    distribution: np.ndarray | None
    raw: float


class CharmScorer(Preparation):
    """Scores images with a trained model.

    Args:
        model: a trained model; put into evaluation mode.
        config: of the model.
        device: that the model runs on; "auto" takes a GPU where there is one.
        precision: "float32", or "bfloat16" or "float16" for matrix products.
        full_size: whether images may be larger than those of the model's training.
        weights_sha256: of the weights, which names the model; "" if the model comes from no file.

    Attributes:
        model, config, weights_sha256: as given.
        score_range: lowest and highest score of the labels.
        unit_bins: float64 (num_outputs,), the score of each output of a distribution on 0..1; a single 1 for scores.

    Raises:
        ValueError: model and config do not fit, or precision is unknown.
        UserError: there is no such device.
    """

    def __init__(
        self,
        model: Model,
        config: ModelConfig,
        device: torch.device | str = "cpu",
        precision: str = "float32",
        full_size: bool = False,
        weights_sha256: str = "",
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
        device = choose_device(device) if isinstance(device, str) else device
        edge = choose_edge(config, full_size)
        super().__init__(config.tokenizer, edge, config.seed, config.draws, config.saliency, str(device), config.colour)
        scales = self.tokenizer.num_scales if config.model.num_scales > 1 else 1  # 1: a model without scale embeddings
        wanted, mode = config.model, config.pos_embeds.mode
        learnt = mode if mode in get_args(LearntMode) else "bilinear"
        made = model.pos_embed_config(learnt, False)  # type: ignore[arg-type]
        pairs = {
            "outputs": (model.head.out_features, config.labels.num_bins),
            "scales": (scales, wanted.num_scales),
            "patch size": (model.patch_size, self.patch_size),
            "whole image": (self.whole_edge, wanted.image_edge),
            "residuals": (self.tokenizer.num_residuals, wanted.num_residuals),
            "positions": (made.mode, mode),
        }
        differing = [f"{name} {found} and {expected}" for name, (found, expected) in pairs.items() if found != expected]
        if differing:
            raise ValueError(f"the model, its tokenizer and its config contradict each other: {'; '.join(differing)}")
        self.model, self.config = model.to(device).eval().requires_grad_(False), config
        self.weights_sha256 = weights_sha256
        self._precision = precision
        self.score_range = config.labels.score_range
        count = config.labels.num_bins
        self.unit_bins = np.linspace(0, 1, count) if count > 1 else np.ones(1)
        self._axes: dict[int, torch.Tensor] = {}

    @classmethod
    def from_pretrained(
        cls,
        folder: AnyPath,
        device: torch.device | str = "auto",
        precision: str = "float32",
        full_size: bool = False,
        revision: str | None = None,
    ) -> "CharmScorer":
        """Loads the scorer of a model's folder (runs/evaluate/model of a clone), or of a model on the Hugging Face hub.

        Args:
            folder: the folder, or user/name; what the hub has is downloaded once (HF_TOKEN and HF_ENDPOINT count).
            device, precision, full_size: as of CharmScorer.
            revision: of a model on the hub: a branch, tag or commit.

        Raises:
            OSError: a file is missing.
            ValueError: a file is damaged, or not of a Charm model.
            UserError: there is no such device, or the hub has no such model.
        """
        folder = find_model(folder, revision)
        with refusing(folder):
            config, _ = read_config(folder)
            with torch.device("meta"):  # takes no memory, whatever the config asks for
                draft = cls(build_model(config.model), config, "meta")
            _check_weights(folder, draft.model)
            saved = read_model(folder)
            for name, tensor in saved.tensors.items():
                if not tensor.isfinite().all():
                    raise ValueError(f"{name} has values that are not finite: nobody can score with such weights")
            model = build_model(config.model)
        model.load_state_dict(saved.tensors)
        return cls(model, config, device, precision, full_size, saved.weights_sha256)

    def save_pretrained(self, folder: AnyPath) -> None:
        """Writes the model's folder, which `from_pretrained` reads."""
        write_model_folder(folder, self.model.state_dict(), self.config)

    def __repr__(self) -> str:
        facts = {
            "backbone": self.config.model.backbone,
            "tokenizer": self.config.tokenizer.name,
            "score_range": self.score_range,
            "draws": self.draws,
            "device": self.device,
        }
        return f"CharmScorer({', '.join(f'{name}={value!r}' for name, value in facts.items())})"

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
        for batch in _group_by_length([one.seq_len for one in flat]):
            shares[batch] = self._predict([flat[index] for index in batch])
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
        return Score(min(max(raw, low), high), float(scores.std()) if len(scores) > 1 else None, distribution, raw)

    @torch.inference_mode()
    def _predict(self, tokens: Sequence[Tokens]) -> np.ndarray:
        """Returns float64 (B, num_outputs): scores on 0..1, or the shares of the bins."""
        length = max(1, max(one.seq_len for one in tokens))

        def stack(name: str) -> torch.Tensor:
            return torch.from_numpy(np.stack([getattr(one, name)[:length] for one in tokens]))

        with autocast(torch.device(self.device), self._precision):
            arrays = (stack(name).to(self.device) for name in ("patches", "patch_coord", "scale_id"))
            embedded = self.embed_positions(tokens, length)
            residuals = None if tokens[0].residuals is None else stack("residuals").to(self.device)
            output = self.model(*arrays, stack("patch_valid"), embedded, residuals)
        shares = output.softmax(dim=1) if len(self.unit_bins) > 1 else output
        return np.asarray(shares.double().cpu())

    def embed_positions(self, tokens: Sequence[Tokens], length: int) -> torch.Tensor:
        """Returns embeddings of the first `length` tokens of each image: float32 (B, length, D), on the device."""
        sides = {side for one in tokens for grid in one.grids for side in grid} - {0}
        learnt = self.model.learnt_grid
        prepared = {side: self._axis(side) for side in sorted(sides)}
        axes = PosEmbedAxes(prepared, None if learnt is None else learnt.detach().float())
        rows = np.stack([axes.rows(one)[:length] for one in tokens])
        return axes.to(torch.device(self.device)).gather(torch.from_numpy(rows))

    def _axis(self, length: int) -> torch.Tensor:
        """Returns an axis for charm.model.axes of `length` tokens; made on first use."""
        if length not in self._axes:
            learnt, made = self.model.learnt_grid, self.config.pos_embeds
            if learnt is None:
                self._axes[length] = self.model.fixed_axis(length).float().cpu()
            else:
                self._axes[length] = axis_weights(length, len(learnt), made.mode, made.antialias)
        return self._axes[length]


def _check_weights(folder: AnyPath, model: Model) -> None:
    """Raises ValueError unless the header of a folder's weights fits a model, which may be on the meta device."""
    expected = model.state_dict()
    found = read_weights_header(folder)
    reshaped = [
        f"{name} is {kind} {list(shape)} and not {list(expected[name].shape)}"
        for name, (kind, shape) in sorted(found.items())
        if name in expected
        if (kind in _FLOATS) != expected[name].is_floating_point() or shape != tuple(expected[name].shape)
    ]
    if problems := list_problems(expected.keys() - found.keys(), found.keys() - expected.keys(), reshaped):
        raise ValueError(f"config.json and model.safetensors are not of one model: {problems}")


def _group_by_length(lengths: Sequence[int]) -> list[list[int]]:
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
