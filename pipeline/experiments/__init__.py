"""The paper's tables as experiments: rows of settings come in, `dvc` commands and tables of results go out.

Users call it as `python -m pipeline experiments`.
"""
