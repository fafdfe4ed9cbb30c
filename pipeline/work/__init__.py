"""Work on shards in several processes, and its store: jobs come in, finished artifacts go out, by hard links.

Called by every stage that makes something.
"""
