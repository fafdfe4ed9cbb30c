"""Training and evaluation: shards, a column and position embeddings come in, a trained model and predictions go out.

Called by the stages `train` and `evaluate`.
"""
