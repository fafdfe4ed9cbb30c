"""Position embeddings: the backbone's grid and the images' sizes come in, weights per axis length go out.

Called by the stage `pos_embeds`; training and evaluation read the folder.
"""
