"""The tokenizer that params.yaml asks for."""

from dataclasses import asdict

from charm.baselines import StandardTokenizer
from charm.tokenizer import CharmTokenizer
from pipeline.errors import UserError
from pipeline.params import Params

Tokenizer = CharmTokenizer | StandardTokenizer


def build_tokenizer(params: Params, patch_size: int, training: bool = False) -> Tokenizer:
    """For a backbone of this patch size; `training` lets the standard input crop at random."""
    if params.tokenizer == "standard":
        return StandardTokenizer(patch_size, params.max_seq_len, random_crop=training)
    try:
        return CharmTokenizer(
            patch_size=patch_size,
            max_seq_len=params.max_seq_len,
            selection=params.selection,
            **asdict(params.tokens),
        )
    except ValueError as error:
        raise UserError(f"params.yaml: tokens: {error}") from error
