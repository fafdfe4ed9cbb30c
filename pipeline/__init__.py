"""The workshop that makes artifacts from a data set: shards, columns, trained models, reports. Runs in a clone."""
