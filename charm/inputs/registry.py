"""All inputs by name: the ways to hand a photograph to a vision transformer (Charm, table 3 and appendices)."""

from collections.abc import Callable

from charm.inputs.padding import PaddingTokenizer
from charm.inputs.square import SquareTokenizer
from charm.inputs.standard import StandardTokenizer
from charm.tokenization.tokenizer import CharmTokenizer

Tokenizer = CharmTokenizer | StandardTokenizer | PaddingTokenizer | SquareTokenizer

# Called as (cutter, training): every input takes patch size and length from the cutter; some let it cut the patches.
TOKENIZERS: dict[str, Callable[[CharmTokenizer, bool], Tokenizer]] = {
    "charm": lambda cutter, training: cutter,
    "standard": lambda cutter, training: StandardTokenizer(cutter.patch_size, cutter.max_seq_len, training),
    "standard_384": lambda cutter, training: StandardTokenizer(cutter.patch_size, cutter.max_seq_len, training, 384),
    "padding": lambda cutter, training: PaddingTokenizer(cutter.patch_size, cutter.max_seq_len),
    "ms": lambda cutter, training: SquareTokenizer(cutter, edge=256),
    "hr_ms": lambda cutter, training: SquareTokenizer(cutter, edge=0),
}
