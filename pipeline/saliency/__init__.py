"""Detectors of the salient object: one module each."""
