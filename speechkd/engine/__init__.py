"""The only room that knows DeepSpeed: partitioned loading, the wrapped module, backward and step, our own checkpoints."""
