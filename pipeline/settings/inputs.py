"""The input that params.yaml describes."""

from dataclasses import asdict, replace

from charm.inputs.protocol import Input
from charm.inputs.registry import build_input
from charm.runtime.errors import UserError
from charm.runtime.fields import MOST_TOKENS
from charm.tokenization.tokenizer import CharmTokenizer
from pipeline.settings.params import Params


def build_cutter(params: Params, patch_size: int, training: bool = False) -> CharmTokenizer:
    """Builds the CharmTokenizer that the section `tokens` describes, for a backbone of this patch size.

    `redraw: once` is a way of training (paper, table 7). In evaluation it would make all draws the first one.
    """
    settings = asdict(params.tokens) | ({} if training else {"redraw": "epoch"})
    try:
        return CharmTokenizer(
            patch_size=patch_size, max_seq_len=params.max_seq_len or MOST_TOKENS, selection=params.selection, **settings
        )
    except ValueError as error:
        raise UserError(f"params.yaml: tokens: {error}") from error


def build_tokenizer(params: Params, patch_size: int, training: bool = False) -> Input:
    """Builds the input that params.yaml names, for a backbone of this patch size; training crops at random."""
    settings = params.input_settings
    try:
        return build_input(params.tokenizer, settings, build_cutter(params, patch_size, training), training)
    except ValueError as error:
        raise UserError(f"params.yaml: {error}") from error


def sketch_tokenizer(params: Params) -> Input:
    """Builds the input for what is the same for any patch size and length: the map that it reads, its scales."""
    return build_tokenizer(replace(params, max_seq_len=None), patch_size=14)


def count_draws(params: Params, tokenizer: Input) -> int:
    """Returns how many draws of an image `evaluate` averages: 1 for inputs that draw nothing, as crop and padding."""
    return params.evaluate.draws if tokenizer.draws else 1
