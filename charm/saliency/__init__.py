"""Detectors of the salient object: an RGB array comes in, a bool mask of its size goes out.

Called by the stage `importance`, and by the command and its server for models that were trained with masks.
"""
