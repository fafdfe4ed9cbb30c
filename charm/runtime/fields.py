"""Types of settings that several rooms share; charm.runtime.schema checks values by them."""

from typing import Annotated, Literal

from charm.runtime.schema import Pattern, Range

Sha256 = Annotated[str, Pattern(r"[0-9a-f]{64}", "64 digits of 0-9a-f, as sha256sum prints")]
BackboneName = Annotated[str, Pattern(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", "a name of a timm model")]
Head = Literal["cls", "cls_mean", "mean", "map", "first_mean"]
PosEmbedTraining = Literal["frozen", "trainable"]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Draws = Annotated[int, Range(1, 64)]
