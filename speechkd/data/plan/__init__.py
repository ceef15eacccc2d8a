"""The training order: length buckets, shuffle windows, and a plan that works for any number of ranks."""
