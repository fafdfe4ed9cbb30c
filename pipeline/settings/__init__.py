"""Settings: params.yaml comes in; checked values, and the input and model that they describe, go out.

Called by every stage first.
"""
