"""Moving the data: labels and photographs -> shards, columns and tables -> batches. Run from the repository."""
