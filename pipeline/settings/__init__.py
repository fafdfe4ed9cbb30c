"""Settings: params.yaml comes in, checked values go out, and the input and model that they ask for.

Every stage calls it first.
"""
