"""Tables of labels: CSV in its many forms and Parquet come in, rows with their file and line go out.

Called by the readers of data sets.
"""
