"""Position embeddings: the backbone's grid and the images' sizes come in, weights per axis length go out.

The grids also tell how much of the images is seen, which is written beside the weights.

Called by the stage `pos_embeds`; training and evaluation read the folder.
"""
