"""Columns: teacher answers and signals stored beside the base shards, with the same shard numbers and key order."""
