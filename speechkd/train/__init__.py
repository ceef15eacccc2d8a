"""The online stage: the module that DeepSpeed wraps, the step loop, schedule and preemption."""
