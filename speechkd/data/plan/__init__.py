"""The order of training: buckets, windows and the elastic plan."""
