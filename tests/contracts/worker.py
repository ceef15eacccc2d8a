"""Two ranks under ZeRO-3 at threshold 0: `worker.py OUT CASES`; writes one line of facts per (case, what is missing on rank 1)."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from speechkd.core import dist
from speechkd.core.types import Batch
from speechkd.engine.ds_config import read_ds_config, with_linear
from speechkd.engine.wrap import Engine
from speechkd.engine.zero import close_distributed, init_distributed, partition_report
from speechkd.stages.costs.traffic import gather_calls
from speechkd.train.distiller import Distiller
from tests.contracts.cases import CASES
from tests.contracts.tiny import Case, batches, distiller_of

OPTIM = SimpleNamespace(lr=3e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
MEMORY = read_ds_config(Path(__file__).parents[2] / "ds_configs/zero3_test.json")


def loss_of(distiller: Distiller, out: dict[str, Any], counts: Tensor) -> Tensor:
    parts = [c.weight * out[n].total / counts[i].clamp_min(1.0).float() for i, (n, c) in enumerate(distiller.losses.items())]
    return torch.stack(parts).sum()


def gradients(engine: Engine) -> dict[str, Tensor]:
    from deepspeed.utils import safe_get_full_grad

    return {name: safe_get_full_grad(p).float() for name, p in engine.trainable()}


def whole(case: Case, weights: dict[str, Tensor] | None, batch: Batch) -> tuple[dict[str, Tensor], Tensor, list[str]]:
    """Gradients of the whole batch in one plain process, the counts, and losses whose count is not what the batch says."""
    plain = distiller_of(replace(case, recompute="off"))
    if weights is not None:
        with torch.no_grad():
            for name, param in plain.named_parameters():
                if param.requires_grad:
                    param.copy_(weights[name])
    counts = plain.counts(batch)
    out: Any = plain(batch)
    wrong = [n for i, n in enumerate(plain.losses) if float(out[n].count) != float(counts[i])]
    loss_of(plain, out, counts).backward()
    grads = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in plain.named_parameters() if p.requires_grad}
    return grads, counts, wrong


def run(case: Case, without: str) -> dict[str, Any]:
    """Two steps; the facts that the test looks at."""
    init_distributed(timeout_s=60.0)
    distiller = distiller_of(case)
    memory = with_linear(MEMORY, case.recompute != "off")
    counted = not distiller.teachers and case.projector["kind"] == "mlp_stack"
    if counted:  # nothing is kept or fetched ahead, so that every gather is one that the plan foretells
        limits = ("stage3_prefetch_bucket_size", "stage3_max_live_parameters", "stage3_max_reuse_distance")
        memory["zero_optimization"] |= dict.fromkeys(limits, 0)
    foretold = sum(gather_calls(distiller.student, 0)) if counted else 0
    engine = Engine(distiller, OPTIM, memory, 1, 0.0, leaves=distiller.blocks())
    weights, facts = None, {"gradient": 0.0, "scale": 0.0, "wrong": [], "whole": [], "apart": 0.0, "counts": []}
    for step in range(2):
        per_rank, together = batches(distiller, case, step, without)
        wanted, counts, wrong = whole(case, weights, together)
        batch = per_rank[dist.rank()]
        before = engine.gathers()
        out: Any = engine(batch)
        engine.backward(loss_of(distiller, out, counts) * dist.world_size())
        # of the last step: DeepSpeed learns the order of modules in the first
        facts["gathers"] = [engine.gathers() - before, foretold] if counted else []
        for name, grad in gradients(engine).items():
            facts["gradient"] = max(facts["gradient"], float((grad - wanted[name]).abs().max()))
            facts["scale"] = max(facts["scale"], float(wanted[name].abs().max()))
        engine.step()
        facts["wrong"] += wrong
        facts["counts"].append(counts.tolist())
        facts["whole"] += [n for n, here in partition_report(engine.module).items() if here][:3]
        weights = {name: engine.master_weight(p).clone() for name, p in engine.trainable()}
        digest = torch.stack([w.double().sum() for w in weights.values()])
        mean = dist.sum_over_ranks(digest.clone()) / dist.world_size()
        facts["apart"] = max(facts["apart"], float((mean - digest).abs().max()))
    return facts


if __name__ == "__main__":
    answers = {}
    for name, without in json.loads(sys.argv[2]):
        answers[f"{name}-{without}"] = run(CASES[name], without)
        if dist.rank() == 0:
            print(f"{name}-{without}", flush=True)
    if dist.rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(answers))
    close_distributed()
