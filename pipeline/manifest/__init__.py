"""The table of images: labels and files come in, one row per listed image goes out, kept or rejected with a reason.

Called by the stage `manifest`; every later stage reads the table.
"""
