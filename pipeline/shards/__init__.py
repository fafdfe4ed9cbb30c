"""WebDataset shards with sidecars: samples come in, tars go out, and members are read back by key.

Called by the stages `shards` and `importance`, and by the loader.
"""

AS_IS = "asis."  # before the extension of an image file whose wide colours are read as they are
