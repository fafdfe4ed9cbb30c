"""What a frozen backbone knows of each image, and the head that is solved on it.

Shards, column and position embeddings come in; a column of features beside the shards and a model's folder go out. The
stages `features` and, with train.mode: head, `train` call it.
"""
