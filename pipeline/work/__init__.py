"""Work shared out and work kept: jobs come in, finished artifacts in a store go out, published by hard links.

Every stage that makes something calls it.
"""
