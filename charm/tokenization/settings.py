"""Types of the settings of CharmTokenizer, by which settings from files are checked, too; nothing here needs numpy."""

from typing import Annotated, Literal

from charm.runtime.fields import MOST_TOKENS
from charm.runtime.schema import Range

PatchSize = Annotated[int, Range(1, 256)]  # pixels
CoarseRatio = Annotated[int, Range(2, 4)]
NumScales = Annotated[int, Range(2, 3)]
SeqLen = Annotated[int, Range(1, MOST_TOKENS)]
Selection = Literal["random", "frequency", "gradient", "entropy", "saliency"]
Threshold = Annotated[float, Range(1, 2**20)]
Budget = Literal["fixed", "fill", "share"]
Share = Annotated[float, Range(1e-6, 1)]
Drop = Literal["uniform", "low_first"]
Fit = Literal["nearest", "pad"]
Coverage = Annotated[float, Range(1e-6, 1)]
Redraw = Literal["epoch", "once"]
