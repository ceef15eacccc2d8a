"""Which DeepSpeed file a run takes under `deepspeed: auto`: the least communication that fits the memory of its ranks."""

from __future__ import annotations

from typing import Any

import torch

from speechkd.engine.ds_config import FILES
from speechkd.models.student import meta_student
from speechkd.recipe import Recipe
from speechkd.stages.assembly.model_facts import live_parameters

FOR_WEIGHTS = 0.5
"""Share of a rank's memory that `auto` gives to weights and optimizer; the rest is for activations, which depend on the data"""
OPTIMISER_BYTES = 4 + 4 + 4 + 4
"""Per trained parameter: float32 master weight, two Adam moments, float32 gradient"""


def best_file(
    replicated: float, sharded: float, inside_a_node: float, offloaded: float, room: float, ranks: int, per_node: int
) -> tuple[str, str]:
    """(file of ds_configs/, why): the least communication that fits into `room` bytes of a GPU.

    Bytes of a rank: `replicated` under ZeRO-2, `sharded` under ZeRO-3, `inside_a_node` under ZeRO-3 with a second copy in each node,
    `offloaded` with frozen weights in host memory. A gather hides behind 1.1k tokens a micro-batch inside a node and 8.8k across nodes
    (370 GB/s and 400 Gb/s), which the micro-batches of a plan rarely have.
    """
    zero2, hpz, zero3, offload = FILES
    if replicated <= room:
        return zero2, "the frozen models fit on each GPU, so nothing need be gathered"
    if sharded > room:
        if offloaded <= room:
            return offload, "the frozen models fit only in the hosts' memory: slow; more GPUs, or a smaller model, would be better"
        return "none", "not even ZeRO-3 over all ranks fits: smaller micro-batches, or more GPUs"
    if ranks > per_node and inside_a_node <= room:
        return hpz, f"with `zero_hpz_partition_size: {per_node}`, so that frozen weights cross nodes once and then stay inside a node"
    return zero3, "the frozen models fit only when they are divided over all ranks"


def auto_file(recipe: Recipe, memory: float, ranks: int, per_node: int) -> tuple[str, str]:
    """(file, why) for ranks with `memory` bytes each, `per_node` of them on a node. From configuration files alone."""
    student, size = meta_student(recipe.student), getattr(torch, recipe.student.dtype).itemsize
    counts = {trained: sum(p.numel() for p in student.parameters() if p.requires_grad == trained) for trained in (False, True)}
    frozen = float(size * (counts[False] + sum(live_parameters(recipe.live, recipe.student).values())))
    trained, optimiser = float(size * counts[True]), counts[True] * OPTIMISER_BYTES / ranks
    sharded = (frozen + trained) / ranks + optimiser
    room = FOR_WEIGHTS * memory
    inside = sharded + frozen / min(ranks, per_node)
    file, why = best_file(frozen + trained + optimiser, sharded, inside, trained + optimiser, room, ranks, per_node)
    file = FILES[-1] if file == "none" else file
    facts = f"{(frozen + trained) / 2**30:.1f} GiB of weights, {memory / 2**30:.0f} GiB a rank, {ranks} ranks in nodes of {per_node}"
    return file, f"{why} ({facts}; half of the memory is left to activations)"


def fitted(ds_config: dict[str, Any], per_node: int) -> dict[str, Any]:
    """The file's configuration for these nodes: a second copy of ZeRO-3's shards spans the ranks of one."""
    zero = dict(ds_config["zero_optimization"])
    if "zero_hpz_partition_size" in zero:
        zero["zero_hpz_partition_size"] = per_node
    return {**ds_config, "zero_optimization": zero}
