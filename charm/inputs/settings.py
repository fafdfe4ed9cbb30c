"""Settings of each input besides those of CharmTokenizer: what runs and models are described by; needs no numpy."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from charm.runtime.fields import MOST_TOKENS
from charm.runtime.schema import Range

Pixels = Annotated[int, Range(1, 8192)]
Edge = Annotated[int, Range(0, 10_000)]  # pixels; 0 for an image's own. Of 10,000 a square takes 300 MB
Tiles = Annotated[int, Range(1, 64)]


@dataclass(frozen=True)
class InputSettings:
    """Settings of an input that has none of its own; the base of all others."""

    shows: ClassVar[str] = ""  # what a model sees of an image, for pages and cards
    has_budget: ClassVar[bool] = True  # whether sequences are as long as max_seq_len; else the settings decide
    reads_scores: ClassVar[bool] = False  # whether it takes a column of scores, made for the images as they are

    @property
    def resizer_start(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """The scales and biases that a learnt resizer starts from; None for zeros, or without one."""
        return None

    @property
    def whole_edge(self) -> int | None:
        """Pixels, side of the square image of which all patches are shown, on one grid, in raster order; else None."""
        return None

    @property
    def drawn_sides(self) -> tuple[int, ...]:
        """Tokens along the sides of the square grids that training draws from; empty where it draws none."""
        return ()

    def length(self, patch_size: int) -> int:
        """Returns the most tokens that an input without a budget has for patches of p pixels; 0 for one with one."""
        return 0


@dataclass(frozen=True)
class CharmSettings(InputSettings):
    """The section `tokens` has the settings of CharmTokenizer."""

    shows = "the whole image in proportion, some patches at native resolution and the others downscaled"
    reads_scores = True


@dataclass(frozen=True)
class StandardSettings(InputSettings):
    """Settings of the standard input."""

    edge: Pixels = 256  # to which the image is resized
    crop: Pixels = 224  # side of the square crop, rounded down to whole patches; 384 gives 729 tokens with p = 14
    place: Literal["random", "centre"] = "random"  # in training, drawn by (seed, epoch, key); else it is the centre
    resize: Literal["shortest", "squash"] = "shortest"  # edge in proportion, or the image to a square of `edge`

    shows = "a square crop of the resized image, the usual input of a vision transformer"
    has_budget = False

    def __post_init__(self) -> None:
        if self.edge < self.crop:
            raise ValueError(f"edge={self.edge}: expected at least crop, {self.crop}")

    @property
    def whole_edge(self) -> int:
        return self.crop

    def length(self, patch_size: int) -> int:
        return count_square(self.crop, patch_size)


@dataclass(frozen=True)
class FlexiSettings(StandardSettings):
    """Settings of the FlexiViT input, with those of the crop; patches are crop / grid pixels wide."""

    edge: Pixels = 240
    crop: Pixels = 240
    # Tokens along a side, of which training draws one for each step; and those in evaluation.
    grids: list[Annotated[int, Range(1)]] = field(default_factory=lambda: [5, 6, 8, 10, 12, 15, 16, 20, 24, 30])
    grid: Annotated[int, Range(1)] = 15

    shows = "a square crop of the resized image, cut on one grid; in training on many, coarse to fine"

    def __post_init__(self) -> None:
        super().__post_init__()
        if uneven := [side for side in (*self.grids, self.grid) if self.crop % side]:
            raise ValueError(f"crop={self.crop}: expected a multiple of each grid, and {uneven[0]} does not divide it")

    @property
    def drawn_sides(self) -> tuple[int, ...]:
        return tuple(self.grids)

    def length(self, patch_size: int) -> int:
        return max(*self.grids, self.grid) ** 2  # the backbone's patch size has no say


@dataclass(frozen=True)
class PaddingSettings(InputSettings):
    """Settings of the padded input: `edge` of the square, pixels; rounded down to whole patches."""

    edge: Pixels = 512

    shows = "the resized image in the middle of a black square"
    has_budget = False

    @property
    def whole_edge(self) -> int:
        return self.edge

    def length(self, patch_size: int) -> int:
        return count_square(self.edge, patch_size)


@dataclass(frozen=True)
class SquareSettings(InputSettings):
    """Settings of the square input: its `edge`, pixels ("MS" has 256); 0 for the image's own longest ("HR + MS")."""

    edge: Edge = 256

    shows = "the image squashed to a square, some of its patches as they are and the others downscaled"


@dataclass(frozen=True)
class NaFlexSettings(InputSettings):
    """Settings of the NaFlex input: whether smaller images are enlarged to the budget, as SigLIP 2 does."""

    enlarge: bool = True

    shows = "the whole image in proportion, resized until its patches fit"


@dataclass(frozen=True)
class AnyResSettings(InputSettings):
    """Settings of the AnyRes input."""

    tile: Pixels = 224  # side of a tile; rounded down to whole patches
    # The grids of tiles, [rows, columns], of which the one is chosen that wastes least of the image.
    pinpoints: list[tuple[Tiles, Tiles]] = field(default_factory=lambda: [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)])

    shows = "the image squashed to one tile, and in proportion on several"
    has_budget = False

    def length(self, patch_size: int) -> int:
        most = max(rows * columns for rows, columns in self.pinpoints)
        return (1 + most) * count_square(self.tile, patch_size)  # with the squashed image


@dataclass(frozen=True)
class QuadtreeSettings(InputSettings):
    """Settings of the quadtree input."""

    edge: Edge = 0  # of the square to which an image is resized first; 0 keeps its native size
    levels: Annotated[int, Range(2, 3)] = 3  # sizes of patches: p, 2p, and with three levels 4p

    shows = "the image in patches of several sizes, small ones where there is detail"


@dataclass(frozen=True)
class MullerSettings(InputSettings):
    """Settings of the input of a learnt resizer."""

    edge: Pixels = 224  # side of the square; rounded down to whole patches
    start: Literal["identity", "published"] = "identity"  # nothing is added; or numbers trained for a ResNet-50
    border: Literal["zero", "reflect"] = (
        "zero"  # what lies beyond the image where it is blurred; zero is the original's
    )

    shows = "the image squashed to a square, with detail that a learnt resizer adds"
    has_budget = False

    @property
    def resizer_start(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        return {"identity": None, "published": ((1.892, -11.295), (-0.014, 0.003))}[self.start]

    def length(self, patch_size: int) -> int:
        return count_square(self.edge, patch_size)


@dataclass(frozen=True)
class MusiqSettings(InputSettings):
    """Settings of MUSIQ's input: the longest `edges`, pixels, of the two smaller sizes beside the native one."""

    edges: tuple[Pixels, Pixels] = (224, 384)

    shows = "the whole image at its native size, and twice smaller in proportion"


@dataclass(frozen=True)
class PublishedSettings(InputSettings):
    """Settings of the published code's tokens."""

    tokens: Annotated[int, Range(1, MOST_TOKENS)] = 1024  # l of its training; one patch more is left as it is
    padded: bool = True  # whether sequences are filled to `tokens` by padding that is attended to, as in training

    shows = "the whole image as the published code cuts it, some patches at native resolution and the others downscaled"


# By the names of the inputs, which are those of charm.inputs.registry.INPUTS.
SETTINGS: dict[str, type[InputSettings]] = {
    "charm": CharmSettings,
    "standard": StandardSettings,
    "flexi": FlexiSettings,
    "padding": PaddingSettings,
    "square": SquareSettings,
    "naflex": NaFlexSettings,
    "anyres": AnyResSettings,
    "quadtree": QuadtreeSettings,
    "muller": MullerSettings,
    "musiq": MusiqSettings,
    "published": PublishedSettings,
}


def whole_patches(pixels: int, patch_size: int) -> int:
    """Returns a length, in pixels, rounded down to whole patches, at least one."""
    return max(1, pixels // patch_size) * patch_size


def count_square(pixels: int, patch_size: int) -> int:
    """Returns the number of patches of a square of this side, pixels, rounded down to whole patches."""
    return max(1, pixels // patch_size) ** 2


def check_length(name: str, settings: InputSettings, patch_size: int, max_seq_len: int) -> None:
    """Raises ValueError if an input that its size defines has more than max_seq_len tokens.

    It is never shrunk by a budget that belongs to another: it would be another input.
    """
    if settings.length(patch_size) > max_seq_len:
        raise ValueError(
            f"{name} with {settings} needs max_seq_len >= {settings.length(patch_size)} for patches of {patch_size} "
            f"pixels, got {max_seq_len}"
        )
