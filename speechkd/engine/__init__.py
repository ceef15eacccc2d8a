"""All DeepSpeed code: partitioned loading, the wrapped module with backward and step, and our own checkpoints."""
