"""Tables of labels: CSV and Parquet files come in, rows with their file and line go out.

Called by the readers of data sets.
"""
