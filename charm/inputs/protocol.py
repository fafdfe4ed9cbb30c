"""What an input is asked: training, evaluation, the scorer and the pages know inputs by these attributes alone."""

from typing import Any, Protocol, Self

import numpy as np

from charm.tokenization.budget import AreaSeen
from charm.tokenization.tokenizer import CharmTokenizer
from charm.tokenization.tokens import Tokens


class Input(Protocol):
    """Makes `Tokens` of an image."""

    @property
    def patch_size(self) -> int: ...  # of its patches, pixels
    @property
    def max_seq_len(self) -> int: ...  # the length of every sequence, padding included
    @property
    def num_scales(self) -> int: ...  # scale embeddings that a model learns for it; 1 for none
    # The importance map that it takes, which is the name of its column; None if it takes none. "saliency" comes as the
    # argument `saliency_mask`, every other map as `importance`.
    @property
    def reads(self) -> str | None: ...
    @property
    def draws(self) -> bool: ...  # whether tokens are drawn at random in evaluation: a score may average several draws
    @property
    def pixel_bytes(self) -> int: ...  # of a number of a patch: 1 for uint8, 4 for float32
    @property
    def num_residuals(self) -> int: ...  # K, images that a model mixes with the patches (Tokens.residuals); mostly 0

    def length(self, image_hw: tuple[int, int]) -> int:
        """Returns the number of tokens, without padding, of an image of this size, (height, width) in pixels."""

    def grids(self, image_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Returns the grids that `Tokens.grids` will have, from the size alone."""

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Returns the image that patches are cut from in evaluation, (H', W', 3), of uint8 (H, W, 3).

        A mask, uint8 (H, W), is fitted likewise.
        """

    def cutter(self, image_hw: tuple[int, int]) -> CharmTokenizer | None:
        """Returns what selects coarse patches in the frame of an image of this size; None if nothing is selected."""

    def of_step(self, seed: int, epoch: int, step: int) -> Self:
        """Returns the input of all images of a training step; itself unless a step draws something for all of them."""

    def area_seen(self, image_hw: tuple[int, int]) -> AreaSeen | None:
        """Returns how much of the area of an image of this size is seen; None for inputs that resize it."""

    def __call__(self, *image: Any, **arguments: Any) -> Tokens:
        """Tokenizes an image; takes `seed`, `epoch`, `key`, `symmetry` and its map, as CharmTokenizer does."""
