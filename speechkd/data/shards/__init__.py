"""Base shards: written by block, published by manifest, opened by index."""
