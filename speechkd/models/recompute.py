"""Recomputing transformer blocks in the backward pass, so that a micro-batch leaves less in memory.

    off        everything that the backward pass reads is kept
    selective  results of matrix products and fused attention are kept; norms, activations and eager attention's scores are computed again
    full       the input of each block alone is kept: a third more compute, the least memory (Chen et al., arXiv 1604.06174)
Under ZeRO-3 a block is one unit (`Engine`'s `leaves`): its weights are gathered once for its backward pass, recomputation included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from speechkd.models.lora import Switch

Recompute = Literal["off", "selective", "full"]

PRODUCTS: list[Any] = [
    getattr(torch.ops.aten, name).default
    for name in (
        "mm",
        "addmm",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
    )
]
"""Operations whose results `selective` keeps. Not `bmm`: with it, eager attention makes scores of [positions, positions]"""


def recompute_blocks(blocks: Iterable[nn.Module], how: Recompute, switch: Switch, random: bool) -> None:
    """Make each block compute itself again in its backward pass, with LoRA as it was in the forward pass. `random`: it has dropout.

    Their `forward` is replaced, not they themselves: hooks of ZeRO-3 stay outside and run once.
    """
    if how == "off":
        return
    contexts = partial(_contexts, how, switch)
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts, preserve_rng_state=random)


def _contexts(how: Recompute, switch: Switch) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What surrounds a block's forward pass, and its second one: by then the switch is that of another pass, or of none."""
    first, again = create_selective_checkpoint_contexts(PRODUCTS) if how == "selective" else (nullcontext(), nullcontext())
    return first, _both(again, switch.set(off=switch.off, positions_BS=switch.positions_BS))


@contextmanager
def _both(outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> Iterator[None]:
    with outer, inner:
        yield
