"""The tokenizer that params.yaml asks for."""

from collections.abc import Callable
from dataclasses import asdict

from charm.baselines import PaddingTokenizer, SquareTokenizer, StandardTokenizer
from charm.tokenizer import CharmTokenizer
from pipeline.errors import UserError
from pipeline.params import Params

Tokenizer = CharmTokenizer | StandardTokenizer | PaddingTokenizer | SquareTokenizer


def _charm(params: Params, patch_size: int, training: bool = False) -> CharmTokenizer:
    try:
        return CharmTokenizer(
            patch_size=patch_size,
            max_seq_len=params.max_seq_len,
            selection=params.selection,
            **asdict(params.tokens),
        )
    except ValueError as error:
        raise UserError(f"params.yaml: tokens: {error}") from error


# Table 3 and section 18 of the paper; called as (params, patch size of the backbone, whether in training).
TOKENIZERS: dict[str, Callable[[Params, int, bool], Tokenizer]] = {
    "charm": _charm,
    "standard": lambda params, p, training: StandardTokenizer(p, params.max_seq_len, training),
    "standard_384": lambda params, p, training: StandardTokenizer(p, params.max_seq_len, training, crop=384),
    "padding": lambda params, p, training: PaddingTokenizer(p, params.max_seq_len),
    "ms": lambda params, p, training: SquareTokenizer(_charm(params, p), edge=256),
    "hr_ms": lambda params, p, training: SquareTokenizer(_charm(params, p), edge=0),
}


def build_tokenizer(params: Params, patch_size: int, training: bool = False) -> Tokenizer:
    """For a backbone of this patch size; in training the standard input is cropped at random."""
    return TOKENIZERS[params.tokenizer](params, patch_size, training)
