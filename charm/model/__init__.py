"""The vision transformer and what judges it: tokens come in, scores go out; losses and metrics compare them to labels.

Called by training, evaluation, the scorer and the export.
"""
