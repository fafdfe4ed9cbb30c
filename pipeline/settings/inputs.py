"""The tokenizer that params.yaml asks for."""

from dataclasses import asdict

from charm.inputs.registry import TOKENIZERS, Tokenizer
from charm.runtime.errors import UserError
from charm.tokenization.tokenizer import CharmTokenizer
from pipeline.settings.params import Params


def build_cutter(params: Params, patch_size: int, training: bool = False) -> CharmTokenizer:
    """What cuts patches as the section `tokens` says, for a backbone of this patch size.

    `redraw: once` is a way of training (paper, table 7). In evaluation it would make all draws the first one.
    """
    settings = asdict(params.tokens) | ({} if training else {"redraw": "epoch"})
    try:
        return CharmTokenizer(
            patch_size=patch_size,
            max_seq_len=params.max_seq_len,
            selection=params.selection,
            **settings,
        )
    except ValueError as error:
        raise UserError(f"params.yaml: tokens: {error}") from error


def build_tokenizer(params: Params, patch_size: int, training: bool = False) -> Tokenizer:
    """For a backbone of this patch size; in training the standard input is cropped at random."""
    return TOKENIZERS[params.tokenizer](build_cutter(params, patch_size, training), training)


def count_draws(params: Params, tokenizer: Tokenizer) -> int:
    """How many draws of an image `evaluate` averages: one where nothing is drawn, as of the plain crop or padding."""
    return params.evaluate.draws if tokenizer.num_scales > 1 else 1
