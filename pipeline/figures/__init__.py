"""The paper's figures 4 to 15: runs, manifests and images come in, a CSV file and an SVG drawing of each go out.

Users call it as `python -m pipeline figures`.
"""
