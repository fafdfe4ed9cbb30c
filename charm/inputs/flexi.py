"""One image size and many patch sizes: the input of FlexiViT (Beyer et al., CVPR 2023, arXiv 2212.08013).

All images of a training step are cut on one grid, drawn from several; the model resamples its patch projection.
"""

from dataclasses import dataclass, field, replace

from charm.inputs.settings import FlexiSettings
from charm.inputs.standard import StandardInput
from charm.tokenization.draws import draw_uniform
from charm.tokenization.tokenizer import CharmTokenizer


@dataclass(frozen=True)
class FlexiInput(StandardInput):
    """Cuts the standard input's crop into patches that are as wide as the grid wants, which training draws, too."""

    patch_size: int = 16  # P, pixels, those of the grid; not the backbone's
    settings: FlexiSettings = field(default_factory=FlexiSettings)

    @classmethod
    def build(cls, settings: FlexiSettings, cutter: CharmTokenizer, training: bool) -> "FlexiInput":  # type: ignore[override]
        return cls(settings.crop // settings.grid, settings, training)

    def of_step(self, seed: int, epoch: int, step: int) -> "FlexiInput":
        """Returns the input on the grid of a step of training; itself in evaluation."""
        if not self.training:
            return self
        grids = self.settings.grids
        drawn = grids[int(draw_uniform(seed, epoch, f"step {step}", "grid", 1)[0] * len(grids))]
        return replace(self, patch_size=self.settings.crop // drawn)
