"""Recomputing transformer blocks in the backward pass, so that a micro-batch leaves less in memory.

    off        everything that the backward pass reads is kept
    selective  results of matrix products and fused attention are kept; norms, activations and eager attention's scores are computed again
    full       the input of each block alone is kept: a third more compute, the least memory (Chen et al., arXiv 1604.06174)
Under ZeRO-3 a block is one unit (`Engine`'s `leaves`): its weights are gathered once for its backward pass, recomputation included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from speechkd.models.lora import Switch

Recompute = Literal["off", "selective", "full"]

PRODUCTS: frozenset[Any] = frozenset(
    getattr(torch.ops.aten, name).default
    for name in (
        "mm",
        "addmm",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
    )
) | {torch.ops.higher_order.flex_attention}
"""Operations whose results `selective` keeps. Not `bmm`: with it, eager attention makes scores of [positions, positions]"""


def recompute_blocks(blocks: Iterable[nn.Module], how: Recompute, switch: Switch) -> None:
    """Make each block compute itself again in its backward pass, with LoRA as it was in the forward pass."""
    if how == "off":
        return
    contexts = {"context_fn": partial(create_selective_checkpoint_contexts, _keeps)} if how == "selective" else {}
    for block in blocks:
        block.forward = _recomputed(block.forward, switch, contexts)


def _keeps(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


def _recomputed(forward: Callable[..., Any], switch: Switch, contexts: dict[str, Any]) -> Callable[..., Any]:
    # `forward`, not the module: hooks of ZeRO-3 stay outside and run once.
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        off, positions_BS = switch.off, switch.positions_BS  # by the time of the backward pass they are those of another pass, or none

        def again(*inner: Any, **named: Any) -> Any:
            with switch.set(off=off, positions_BS=positions_BS):
                return forward(*inner, **named)

        return checkpoint(again, *args, use_reentrant=False, **contexts, **kwargs)

    return run
