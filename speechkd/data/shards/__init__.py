"""Base shards: written one by one, published by a manifest, read through an index."""
