"""The command `charm` and its server: files or uploads come in, scores, tables, drawings and a page go out.

Users call it from a shell; it calls the scorer, the inputs and `charm.images`.
"""
