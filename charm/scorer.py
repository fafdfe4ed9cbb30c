"""CharmScorer: photographs in, scores out, from the folder of a trained model (charm.hub).

An image's score depends on the image and the model alone: patches are drawn by its pixels, its tokens attend to each
other and never to padding. Batch mates, order and the number of threads change no more than rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch

from charm.hub import AnyPath, read_model
from charm.inputs.preparation import Preparation
from charm.model.axes import PosEmbedAxes
from charm.model.pos_embed import axis_weights
from charm.model.vit import PRECISIONS, CharmViT, autocast
from charm.tokenization.tokens import Tokens

_BATCH_TOKENS = 8192  # of a batch, padding included: 16 images of 512


@dataclass(frozen=True)
class Score:
    """What a model thinks of an image.

    Attributes:
        score: on the scale of the labels that the model was trained with (`CharmScorer.score_range`).
        spread: standard deviation of the score over the draws of patches, on that scale; 0 where there is one.
        distribution: float64 (num_bins,), the share of each bin of the labels, lowest first; None where the model was
            trained on scores.
    """

    score: float
    spread: float
    distribution: np.ndarray | None


class CharmScorer(Preparation):
    """Scores images with a trained model.

    Args:
        model: a trained CharmViT; put into evaluation mode.
        config: as the stage `evaluate` writes it into config.json.
        device: where the model runs.
        precision: "float32", or "bfloat16" or "float16" for matrix products.

    Attributes:
        score_range: lowest and highest score of the labels.
        bins: float64 (num_outputs,), the score of each output of a distribution; a single 1 for scores.

    Raises:
        ValueError: the config is none of a Charm model, or precision is unknown.
    """

    def __init__(
        self, model: CharmViT, config: dict[str, Any], device: torch.device | str = "cpu", precision: str = "float32"
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
        super().__init__(config, str(device))
        self.model = model.to(device).eval().requires_grad_(False)
        self._precision = precision
        try:
            low, high = config["labels"]["score_range"]
            count = config["labels"]["num_bins"]
            self._pos_embeds = (config["pos_embeds"]["mode"], config["pos_embeds"]["antialias"])
        except (LookupError, TypeError) as error:
            raise ValueError(f"config is not of a Charm model: {type(error).__name__} {error}") from error
        self.score_range = (float(low), float(high))
        self.bins = np.linspace(0, 1, count) if count > 1 else np.ones(1)
        self._axes: dict[int, torch.Tensor] = {}

    @classmethod
    def from_pretrained(
        cls, folder: AnyPath, device: torch.device | str = "cpu", precision: str = "float32"
    ) -> "CharmScorer":
        """The scorer of a folder that the stage `evaluate` wrote (runs/evaluate/model); nothing is downloaded.

        Raises:
            OSError: a file is missing.
            ValueError: a file is damaged, or not of a Charm model.
        """
        tensors, config = read_model(folder)
        try:
            about = dict(config["model"])
            trained = about.pop("pos_embed") == "trainable"
            model = CharmViT(**about, pretrained=False, train_pos_embed=trained)
            model.load_state_dict(tensors)
        except (LookupError, TypeError, RuntimeError) as error:
            raise ValueError(f"{folder}: config.json and model.safetensors are not of one model ({error})") from error
        return cls(model, config, device, precision)

    @overload
    def __call__(self, image: list[Any], *, draws: int | None = None, saliency_mask: Any = None) -> list[Score]: ...

    @overload
    def __call__(self, image: Any, *, draws: int | None = None, saliency_mask: Any = None) -> Score: ...

    def __call__(self, image: Any, *, draws: int | None = None, saliency_mask: Any = None) -> Score | list[Score]:
        """Scores an image, or each of a list.

        Args:
            image: an image of any size: numpy uint8 (H, W, 3) RGB, PIL, or torch uint8 (3, H, W) RGB; or a list.
            draws: of patches, whose scores are averaged; None = as many as `evaluate` took.
            saliency_mask: bool (H, W), True on the salient object; for a list, a list. For models that were trained
                with `selection: saliency`, and for no others.

        Raises:
            ValueError: an image or a mask is not as described.

        >>> scorer = CharmScorer.from_pretrained("runs/evaluate/model")  # doctest: +SKIP
        >>> [found.score for found in scorer([beach, street])]  # doctest: +SKIP
        [3.82, 2.07]
        """
        images = image if isinstance(image, list) else [image]
        masks = saliency_mask if isinstance(saliency_mask, list) else [saliency_mask] * len(images)
        if len(masks) != len(images):
            raise ValueError(f"{len(images)} images and {len(masks)} masks: expected one for each")
        count = self.draws if draws is None else draws
        tokens = [self.tokenize(*pair, draws=count) for pair in zip(images, masks, strict=True)]
        scores = self.score_tokens(tokens)
        return scores if isinstance(image, list) else scores[0]

    def score_tokens(self, tokens: Sequence[Sequence[Tokens]]) -> list[Score]:
        """The scores of images, each with its draws, from `tokenize`; in batches of sequences of about one length."""
        flat = [one for draws in tokens for one in draws]
        shares = np.empty((len(flat), len(self.bins)))
        for batch in _group_by_length([one.seq_len for one in flat]):
            shares[batch] = self._predict([flat[index] for index in batch])
        ends = np.cumsum([len(draws) for draws in tokens])
        return [self._summarize(part) for part in np.split(shares, ends[:-1])] if tokens else []

    def _summarize(self, shares: np.ndarray) -> Score:
        """shares: float64 (draws, num_outputs)."""
        low, high = self.score_range
        scores = low + (high - low) * (shares @ self.bins)
        distribution = shares.mean(axis=0) if len(self.bins) > 1 else None
        return Score(float(scores.mean()), float(scores.std()), distribution)

    @torch.inference_mode()
    def _predict(self, tokens: Sequence[Tokens]) -> np.ndarray:
        """float64 (B, num_outputs): scores on the scale of 0..1, or the shares of the bins."""
        length = max(1, max(one.seq_len for one in tokens))

        def stack(name: str) -> torch.Tensor:
            return torch.from_numpy(np.stack([getattr(one, name)[:length] for one in tokens]))

        with autocast(torch.device(self.device), self._precision):
            arrays = (stack(name).to(self.device) for name in ("patches", "patch_coord", "scale_id"))
            output = self.model(*arrays, stack("patch_valid"), self.embed_positions(tokens, length))
        shares = output.softmax(dim=1) if len(self.bins) > 1 else output
        return np.asarray(shares.double().cpu())

    def embed_positions(self, tokens: Sequence[Tokens], length: int) -> torch.Tensor:
        """Position embeddings of the first `length` tokens of each image: float32 (B, length, D), on the device."""
        sides = {side for one in tokens for grid in one.grids for side in grid} - {0}
        axes = PosEmbedAxes({side: self._axis(side) for side in sorted(sides)}, self._learnt).to(
            torch.device(self.device)
        )
        rows = np.stack([axes.rows(one)[:length] for one in tokens])
        return axes.to(torch.device(self.device)).gather(torch.from_numpy(rows))

    @property
    def _learnt(self) -> torch.Tensor | None:
        return None if self.model.rotary else self.model.learnt_grid.detach().float()

    def _axis(self, length: int) -> torch.Tensor:
        """Of charm.model.axes, made on first use."""
        if length not in self._axes:
            if self.model.rotary:
                self._axes[length] = torch.stack(self.model.rotary_axis(length)).float().cpu()
            else:
                self._axes[length] = axis_weights(length, len(self.model.learnt_grid), *self._pos_embeds)
        return self._axes[length]


def _group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of sequences in batches of at most `_BATCH_TOKENS`, padding included; longest first."""
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if not room:
            batches.append([])
            room = max(1, _BATCH_TOKENS // max(1, lengths[index]))
        batches[-1].append(index)
        room -= 1
    return batches
