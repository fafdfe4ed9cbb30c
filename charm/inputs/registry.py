"""All inputs by name: the ways to hand an image to a vision transformer (Charm, table 3 and appendices).

A new input is a module, its settings in charm.inputs.settings, and a line here.
"""

from collections.abc import Callable, Mapping
from typing import Any

from charm.inputs.anyres import AnyResInput
from charm.inputs.flexi import FlexiInput
from charm.inputs.muller import MullerInput
from charm.inputs.musiq import MusiqInput
from charm.inputs.naflex import NaFlexInput
from charm.inputs.padding import PaddingInput
from charm.inputs.protocol import Input
from charm.inputs.published import PublishedInput
from charm.inputs.quadtree import QuadtreeInput
from charm.inputs.settings import SETTINGS, InputSettings, check_length
from charm.inputs.square import SquareInput
from charm.inputs.standard import StandardInput
from charm.runtime.schema import build
from charm.tokenization.tokenizer import CharmTokenizer

# Called as (settings, cutter, training). Every input takes patch size and length from the cutter, unless its own size
# decides how long it is; some let it cut the patches.
INPUTS: dict[str, Callable[[Any, CharmTokenizer, bool], Input]] = {
    "charm": lambda settings, cutter, training: cutter,
    "standard": StandardInput.build,
    "flexi": FlexiInput.build,
    "padding": PaddingInput.build,
    "square": SquareInput.build,
    "naflex": NaFlexInput.build,
    "anyres": AnyResInput.build,
    "quadtree": QuadtreeInput.build,
    "muller": MullerInput.build,
    "musiq": MusiqInput.build,
    "published": PublishedInput.build,
}


def build_input(
    name: str, settings: InputSettings | Mapping[str, Any], cutter: CharmTokenizer, training: bool = False
) -> Input:
    """Builds the input of a name; in training what is random then is drawn. The cutter has patch size and most tokens.

    Raises ValueError if a setting is unknown or not allowed, or the input's own length exceeds max_seq_len.
    """
    chosen = build(SETTINGS[name], settings) if isinstance(settings, Mapping) else settings
    check_length(name, chosen, cutter.patch_size, cutter.max_seq_len)
    return INPUTS[name](chosen, cutter, training)
