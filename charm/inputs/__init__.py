"""Inputs of a vision transformer: an array of an image comes in, `Tokens` go out; one module per input.

Called by training, evaluation and the scorer, which find an input by its name in `charm.inputs.registry`.
"""
