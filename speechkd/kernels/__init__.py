"""Ops with more than one implementation. Each folder has `reference.py` (plain torch, defines the result) and faster alternatives.

The losses on an LM head (`linear_*`) take hidden states and the head's weight. Their chunked form computes the gradients during forward,
some rows at a time, so [T, V] logits never exist and the weight is not kept for backward. `triton_*.py` are the same for GPUs.
"""

from speechkd.kernels.layer_sum import layer_sum
from speechkd.kernels.linear_cross_entropy import linear_cross_entropy
from speechkd.kernels.linear_kl import linear_kl
from speechkd.kernels.linear_topk_kl import linear_topk_kl
from speechkd.kernels.stack_norm_mlp import stack_norm_mlp
from speechkd.kernels.weighted_cka import weighted_cka

__all__ = ["layer_sum", "linear_cross_entropy", "linear_kl", "linear_topk_kl", "stack_norm_mlp", "weighted_cka"]
