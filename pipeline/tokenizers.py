"""The tokenizer that params.yaml asks for."""

from dataclasses import asdict

from charm.baselines import TOKENIZERS, Tokenizer
from charm.tokenizer import CharmTokenizer
from pipeline.errors import UserError
from pipeline.params import Params


def build_cutter(params: Params, patch_size: int) -> CharmTokenizer:
    """What cuts patches as the section `tokens` says, for a backbone of this patch size."""
    try:
        return CharmTokenizer(
            patch_size=patch_size,
            max_seq_len=params.max_seq_len,
            selection=params.selection,
            **asdict(params.tokens),
        )
    except ValueError as error:
        raise UserError(f"params.yaml: tokens: {error}") from error


def build_tokenizer(params: Params, patch_size: int, training: bool = False) -> Tokenizer:
    """For a backbone of this patch size; in training the standard input is cropped at random."""
    return TOKENIZERS[params.tokenizer](build_cutter(params, patch_size), training)
