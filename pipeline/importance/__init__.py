"""Importance columns: image shards come in, a column shard beside each goes out.

Called by the stage `importance`.
"""
