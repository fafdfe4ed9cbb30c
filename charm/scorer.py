"""CharmScorer: photographs in, scores out, from the folder of a trained model (charm.hub) by PyTorch."""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch

from charm.hub import AnyPath, find_model, read_config, read_model, read_weights_header, refusing, write_model_folder
from charm.model.axes import PosEmbedAxes
from charm.model.config import ModelConfig
from charm.model.frozen import layer_features
from charm.model.pos_embed import axis_weights
from charm.model.protocol import LearntMode, Model
from charm.model.registry import build_model, restore_model
from charm.model.vit import CharmViT
from charm.runtime.devices import PRECISIONS, autocast, choose_device
from charm.runtime.weights import list_problems
from charm.scores import Scorer, group_by_length
from charm.tokenization.tokens import Tokens

_FLOATS = ("F16", "BF16", "F32", "F64")  # names of safetensors


class CharmScorer(Scorer):
    """Scores images with a trained model.

    Args:
        model: a trained model; put into evaluation mode.
        device: that the model runs on; "auto" takes a GPU where there is one.
        precision: "float32", or "bfloat16" or "float16" for matrix products.
        config, full_size, weights_sha256: as of Scorer.

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
        super().__init__(config, str(device), full_size, weights_sha256)
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
        self.model = model.to(device).eval().requires_grad_(False)
        self._precision = precision
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
            model = restore_model(config.model, saved.tensors)
        return cls(model, config, device, precision, full_size, saved.weights_sha256)

    def save_pretrained(self, folder: AnyPath) -> None:
        """Writes the model's folder, which `from_pretrained` reads."""
        write_model_folder(folder, self.model.state_dict(), self.config)

    @torch.inference_mode()
    def predict(self, tokens: Sequence[Tokens], length: int) -> np.ndarray:
        with autocast(torch.device(self.device), self._precision):
            output = self.model(*self._gather(tokens, length))
        return np.asarray(output.double().cpu())

    @torch.inference_mode()
    def read_layers(self, tokens: Sequence[Sequence[Tokens]], layers: Sequence[int]) -> np.ndarray:
        """Returns features of images from their draws by `tokenize`, averaged: float32 (N, layers, parts, D).

        Args:
            tokens: as of `score_tokens`.
            layers: of a CharmViT, as of `layer_features`, which says what the features are.
        """
        assert isinstance(self.model, CharmViT)
        flat = [one for draws in tokens for one in draws]
        found: dict[int, np.ndarray] = {}
        for batch in group_by_length([one.seq_len for one in flat]):
            length = max(1, max(flat[index].seq_len for index in batch))
            with autocast(torch.device(self.device), self._precision):
                values = layer_features(self.model, layers, *self._gather([flat[index] for index in batch], length))
            found |= zip(batch, values.float().cpu().numpy(), strict=True)
        stacked = np.stack([found[index] for index in range(len(flat))])
        ends = np.cumsum([len(draws) for draws in tokens])
        return np.stack([draws.mean(axis=0) for draws in np.split(stacked, ends[:-1])])

    def _gather(self, tokens: Sequence[Tokens], length: int) -> tuple[Any, ...]:
        """Returns the arguments of the model: the first `length` tokens of each image, as a batch."""

        def stack(name: str) -> torch.Tensor:
            return torch.from_numpy(np.stack([getattr(one, name)[:length] for one in tokens]))

        arrays = (stack(name).to(self.device) for name in ("patches", "patch_coord", "scale_id"))
        residuals = None if tokens[0].residuals is None else stack("residuals").to(self.device)
        return *arrays, stack("patch_valid"), self.embed_positions(tokens, length), residuals

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
