"""Models, their losses and metrics: tokens come in, scores go out and are compared to labels.

Called by training, evaluation, the scorer and the export.
"""
