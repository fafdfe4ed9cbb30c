"""Settings of each input besides those of CharmTokenizer: what runs and models are described by; needs no numpy."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from charm.runtime.schema import Range

Pixels = Annotated[int, Range(1, 8192)]
Edge = Annotated[int, Range(0, 10_000)]  # pixels; 0 for an image's own. Of 10,000 a square takes 300 MB
Tiles = Annotated[int, Range(1, 64)]


@dataclass(frozen=True)
class InputSettings:
    """Settings of an input that has none of its own; the base of all others.

    Attributes:
        has_budget: whether sequences are as long as max_seq_len; else the settings decide their length.
        reads_scores: whether it takes a column of scores (CharmTokenizer.reads), made for the images as they are.
    """

    has_budget: ClassVar[bool] = True
    reads_scores: ClassVar[bool] = False

    def length(self, patch_size: int) -> int:
        """Returns the tokens that an input without a budget has for patches of p pixels; 0 for one with a budget."""
        return 0


@dataclass(frozen=True)
class CharmSettings(InputSettings):
    """The section `tokens` has the settings of CharmTokenizer."""

    reads_scores = True


@dataclass(frozen=True)
class StandardSettings(InputSettings):
    """Settings of the standard input.

    Attributes:
        edge: pixels, to which the image is resized.
        crop: pixels, side of the square crop; rounded down to whole patches. 224, or 384 (729 tokens with p = 14).
        place: of the crop in training, drawn from (seed, epoch, key) or the centre; in evaluation it is the centre.
        resize: "shortest" edge to `edge`, in proportion, or "squash" the image to a square of `edge`.
    """

    edge: Pixels = 256
    crop: Pixels = 224
    place: Literal["random", "centre"] = "random"
    resize: Literal["shortest", "squash"] = "shortest"

    has_budget = False

    def __post_init__(self) -> None:
        if self.edge < self.crop:
            raise ValueError(f"edge={self.edge}: expected at least crop, {self.crop}")

    def length(self, patch_size: int) -> int:
        """Returns the tokens of the crop."""
        return (whole_patches(self.crop, patch_size) // patch_size) ** 2


@dataclass(frozen=True)
class PaddingSettings(InputSettings):
    """Settings of the padded input: `edge` of the square, pixels; rounded down to whole patches."""

    edge: Pixels = 512

    has_budget = False

    def length(self, patch_size: int) -> int:
        """Returns the tokens of the square."""
        return (whole_patches(self.edge, patch_size) // patch_size) ** 2


@dataclass(frozen=True)
class SquareSettings(InputSettings):
    """Settings of the square input: its `edge`, pixels ("MS" has 256); 0 for the image's own longest ("HR + MS")."""

    edge: Edge = 256


@dataclass(frozen=True)
class NaFlexSettings(InputSettings):
    """Settings of the NaFlex input: whether smaller images are enlarged to the budget, as SigLIP 2 does."""

    enlarge: bool = True


@dataclass(frozen=True)
class AnyResSettings(InputSettings):
    """Settings of the AnyRes input.

    Attributes:
        tile: side of a tile, pixels; rounded down to whole patches.
        pinpoints: the grids of tiles, [rows, columns], of which the one is chosen that wastes least of the image.
    """

    tile: Pixels = 224
    pinpoints: list[tuple[Tiles, Tiles]] = field(default_factory=lambda: [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)])

    has_budget = False

    def length(self, patch_size: int) -> int:
        """Returns the tokens of the most tiles and of the squashed image."""
        most = max(rows * columns for rows, columns in self.pinpoints)
        return (1 + most) * (whole_patches(self.tile, patch_size) // patch_size) ** 2


@dataclass(frozen=True)
class QuadtreeSettings(InputSettings):
    """Settings of the quadtree input.

    Attributes:
        edge: pixels, of the square to which an image is resized first; 0 keeps its native size.
        levels: sizes of patches: p, 2p, and with three levels 4p.
    """

    edge: Edge = 0
    levels: Annotated[int, Range(2, 3)] = 3


# By the names of the inputs, which are those of charm.inputs.registry.INPUTS.
SETTINGS: dict[str, type[InputSettings]] = {
    "charm": CharmSettings,
    "standard": StandardSettings,
    "padding": PaddingSettings,
    "square": SquareSettings,
    "naflex": NaFlexSettings,
    "anyres": AnyResSettings,
    "quadtree": QuadtreeSettings,
}


def whole_patches(pixels: int, patch_size: int) -> int:
    """Returns a length, in pixels, rounded down to whole patches, at least one."""
    return max(1, pixels // patch_size) * patch_size


def check_length(name: str, settings: InputSettings, patch_size: int, max_seq_len: int) -> None:
    """Raises ValueError if an input that its size defines has more than max_seq_len tokens.

    It is never shrunk by a budget that belongs to another: it would be another input.
    """
    if settings.length(patch_size) > max_seq_len:
        raise ValueError(
            f"{name} with {settings} needs max_seq_len >= {settings.length(patch_size)} for patches of {patch_size} "
            f"pixels, got {max_seq_len}"
        )
