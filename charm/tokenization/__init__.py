"""The method of the paper: an RGB array and its importance come in, patches of several scales go out as `Tokens`.

Pure functions of arrays; called by the inputs, by the stage `importance`, and by users of the library.
"""
