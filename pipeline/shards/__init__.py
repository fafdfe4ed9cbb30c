"""WebDataset shards with sidecars: samples come in, tars go out, and members are read back by key.

Called by the stages `shards` and `importance`, and by the loader.
"""
