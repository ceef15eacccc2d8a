"""Columns: answers, labels and packed teacher signals beside base shards, with the same shard numbers and key order."""
