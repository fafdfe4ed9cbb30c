"""Types of settings that several rooms share; charm.runtime.schema checks values by them."""

from typing import Annotated, Literal

from charm.runtime.schema import Pattern, Range

Sha256 = Annotated[str, Pattern(r"[0-9a-f]{64}", "64 digits of 0-9a-f, as sha256sum prints")]
BackboneName = Annotated[str, Pattern(r"(?=.{1,100}$)[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", "a name of a timm model")]
Head = Literal["cls", "cls_mean", "mean", "map", "first_mean", "native", "coarse", "native_coarse", "cls_native_coarse"]
PosEmbedTraining = Literal["frozen", "trainable"]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Draws = Annotated[int, Range(1, 64)]
MOST_TOKENS = 2**16  # of an image in all of its draws, padding included: 40 MB
Fraction = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(1)]
# Of SAM-HQ; the detector reads 256 tokens, each of a letter at least.
Prompt = Annotated[str, Pattern(r"(?=.*\w).{1,200}", "words, at most 200 characters in one line")]
SamName = Literal["vit_tiny", "vit_b", "vit_l", "vit_h"]
