"""`speechkd plan RECIPE --cluster PROFILE`: memory of a GPU, gathers, checkpoints, reading and hours, for people or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from speechkd.cluster.profile import ClusterProfile
from speechkd.core.errors import InputError
from speechkd.engine.ds_config import AUTO, read_ds_config, stage
from speechkd.models.attention import pick_attention
from speechkd.models.flops import peak_flops
from speechkd.models.student import meta_student
from speechkd.recipe import Recipe
from speechkd.stages.assembly.flops import model_flops
from speechkd.stages.assembly.memory_file import auto_file, best_file
from speechkd.stages.assembly.model_facts import live_parameters
from speechkd.stages.costs.hours import StageHours, stage_hours
from speechkd.stages.costs.memory import Memory, activation_bytes, rank_memory
from speechkd.stages.costs.pace import Pace, estimated_pace, measured_pace, recorded_pace
from speechkd.stages.costs.shapes import Shapes, step_shapes
from speechkd.stages.costs.traffic import Gathers, bytes_per_example, checkpoint_bytes, gathers, trained_shapes

GIB = 2**30
ROOM = 0.92
"""Share of a GPU's memory that a plan may fill"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """Everything that is printed."""

    cluster: str
    nodes: int
    ranks: int
    steps: int
    shapes: Shapes
    memory: Memory
    zero: int
    deepspeed: str
    """the file that fits best"""
    deepspeed_why: str
    gathers: Gathers | None
    """None where nothing is gathered: ZeRO-2, or one rank"""
    compute_s: float | None
    """of a micro-batch"""
    flops_per_step: float
    checkpoint_bytes: int
    read_bytes_per_step: float | None
    attention: str
    """what the language model runs on such a GPU"""
    recompute: str
    budget_factor: float | None
    """by which the plan's limits could be larger (below 1: must be smaller) to fill a GPU; None where its memory is not known"""
    pace: Pace | None
    stages: list[StageHours]

    @property
    def seconds(self) -> float | None:
        """Of all stages one after another; None where one is not known."""
        known = [s.seconds for s in self.stages if s.seconds is not None]
        return sum(known) if len(known) == len(self.stages) else None


def plan_on_cluster(recipe: Recipe, profile: ClusterProfile, tokens_per_s: float, measure: bool, as_json: bool) -> int:
    """Print what the recipe costs on the cluster. `measure`: run a few of its steps here first, if no run of it was recorded."""
    made = make_plan(recipe, profile, tokens_per_s, measure)
    if as_json:
        print(json.dumps({**asdict(made), "memory_bytes": made.memory.total, "seconds": made.seconds}, indent=1))
    else:
        print("\n".join(_lines(made, profile, recipe)))
    return 0


def make_plan(recipe: Recipe, profile: ClusterProfile, tokens_per_s: float = 1000.0, measure: bool = False) -> ClusterPlan:
    """Costs of a recipe. Raises InputError for ranks that the recipe's plan cannot deal out."""
    nodes = profile.train.nodes
    ranks, gpu = nodes * profile.ranks, profile.gpus_per_node > 0
    shares = recipe.plan.per_rank(ranks)
    ds_config = read_ds_config(Path(recipe.deepspeed))
    zero, dtype = stage(ds_config), getattr(torch, recipe.student.dtype)
    student, flops = meta_student(recipe.student), model_flops(recipe)
    shapes = step_shapes(recipe, student, flops)
    live = sum(live_parameters(recipe.live, recipe.student).values())
    trained = trained_shapes(recipe, student)
    parts = sum(torch.Size(shape).numel() for name, shape in trained if name.startswith("parts."))
    device = torch.device("cuda" if gpu else "cpu")
    attention = pick_attention(student.llm.lm, recipe.student.attention, device)
    activations = activation_bytes(student, shapes, recipe.student.recompute, attention.name != "eager")

    def memory(zero: int, ranks: int) -> Memory:
        return rank_memory(student, live, parts, dtype, shapes, activations, ranks, zero, gpu)

    size = checkpoint_bytes(trained)
    flops_per_step = shapes.flops * recipe.plan.micro_batches
    pace = recorded_pace(recipe, ranks)
    if pace is None and measure:
        here = _ranks_here(recipe, ranks)
        pace = measured_pace(recipe, here).on(here, ranks)
    peak = _peak(profile)
    if pace is None and peak is not None:
        frozen = memory(2, ranks).frozen
        pace = estimated_pace(flops_per_step / ranks, peak, profile.mfu, size, frozen)
    room = ROOM * (profile.gpu_memory_gib or float("inf")) * GIB
    sharded = memory(3, ranks)
    inside = sharded.total + memory(3, min(ranks, profile.ranks)).frozen
    file, why = best_file(memory(2, ranks).total, sharded.total, inside, sharded.total - sharded.frozen, room, ranks, profile.ranks)
    if recipe.deepspeed == AUTO and profile.gpu_memory_gib:
        file, why = auto_file(recipe, profile.gpu_memory_gib * GIB, ranks, profile.ranks)
    speed = flops_per_step / pace.step_s / ranks if pace is not None else None
    return ClusterPlan(
        cluster=profile.name,
        nodes=nodes,
        ranks=ranks,
        steps=recipe.train.steps,
        shapes=shapes,
        memory=memory(zero, ranks),
        zero=zero,
        deepspeed=file if profile.gpu_memory_gib else recipe.deepspeed,
        deepspeed_why=why if profile.gpu_memory_gib else "the profile does not say how much memory a GPU has (`gpu_memory_gib`)",
        gathers=gathers(student, live, ds_config, profile, ranks, dtype) if zero == 3 and ranks > 1 else None,
        compute_s=pace.step_s / shares if pace is not None else None,
        flops_per_step=flops_per_step,
        checkpoint_bytes=size,
        read_bytes_per_step=_read_bytes(recipe, shapes),
        attention=attention.name,
        recompute=recipe.student.recompute,
        budget_factor=_budget_factor(memory(zero, ranks), room) if profile.gpu_memory_gib else None,
        pace=pace,
        stages=stage_hours(recipe, profile, student, pace, speed, tokens_per_s),
    )


def _ranks_here(recipe: Recipe, ranks: int) -> int:
    """How many processes this machine measures with: the cluster's number on CPUs, one for each GPU elsewhere, as the plan divides."""
    wanted = torch.cuda.device_count() if torch.cuda.is_available() else min(ranks, 2)
    return next(count for count in range(min(ranks, wanted), 0, -1) if recipe.plan.micro_batches % count == 0)


def _peak(profile: ClusterProfile) -> float | None:
    """TFLOP/s of one GPU: what the profile says, or what is known of the GPU here."""
    if profile.gpu_tflops is not None or not torch.cuda.is_available():
        return profile.gpu_tflops
    known = peak_flops(torch.cuda.get_device_name(0))
    return None if known is None else known / 1e12


def _budget_factor(memory: Memory, room: float) -> float:
    """How many micro-batches like this one fit at once: activations grow with their rows, the rest does not."""
    of_rows = memory.activations + memory.encoder + memory.head
    return max(0.0, room - (memory.total - of_rows)) / max(of_rows, 1.0)


def _read_bytes(recipe: Recipe, shapes: Shapes) -> float | None:
    try:
        return bytes_per_example(recipe) * shapes.examples * recipe.plan.micro_batches
    except InputError:
        return None


def _lines(plan: ClusterPlan, profile: ClusterProfile, recipe: Recipe) -> Iterator[str]:
    m, shapes = plan.memory, plan.shapes
    budget = f"{plan.steps:,} steps of {recipe.plan.micro_batches} micro-batches"
    yield f"cluster     {plan.cluster}: {plan.nodes} nodes x {profile.ranks} ranks, {budget}"
    yield (
        f"shapes      a micro-batch: {shapes.positions:,.0f} positions, {shapes.examples:.1f} examples, "
        f"{shapes.audio_seconds:.0f} s of audio; largest {shapes.rows} x {shapes.length} ({shapes.basis})"
    )
    of = f" of {profile.gpu_memory_gib:g}" if profile.gpu_memory_gib else ""
    yield (
        f"memory      {m.total / GIB:.2f} GiB{of} a rank, ZeRO-{plan.zero}: frozen {m.frozen / GIB:.2f}, trained {m.trained / GIB:.3f}, "
        f"optimiser {m.optimiser / GIB:.3f}, gathered {m.gathered / GIB:.2f}, activations {m.activations / GIB:.2f}, "
        f"encoder {m.encoder / GIB:.2f}, head {m.head / GIB:.2f}, framework {m.framework / GIB:.1f}"
    )
    yield f"attention   {plan.attention}, recompute {plan.recompute}"
    if plan.budget_factor is not None:
        limits, f = recipe.plan, plan.budget_factor
        examples, tokens = max(1, int(limits.max_examples * f)), int(limits.max_tokens * f)
        fits = f"max_examples {examples}, max_seconds {limits.max_seconds * f:.0f}, max_tokens {tokens}"
        word = "fits" if f >= 1 else "does not fit"
        yield f"budget      {word}: a micro-batch could be {f:.2f} x the largest: {fits}" if f else "budget      not even the weights fit"
    if plan.gathers is not None:
        against = "" if plan.compute_s is None else f", beside {plan.compute_s:.3f} s of computing"
        bound = "" if plan.compute_s is None or plan.gathers.seconds < plan.compute_s else ": gathers bound the step"
        size = plan.gathers.micro_batch / 1e9
        took = f"{plan.gathers.seconds:.3f} s at the profile's link{against}{bound}"
        yield f"gathers     {size:.2f} GB a micro-batch and rank in {plan.gathers.calls} gathers, {took}"
    yield f"deepspeed   {plan.deepspeed}: {plan.deepspeed_why}"
    yield f"flops       {plan.flops_per_step / 1e12:.3f} TFLOP a step"
    yield f"checkpoint  {plan.checkpoint_bytes:,} bytes, {recipe.train.keep_checkpoints} kept"
    if plan.read_bytes_per_step is not None and plan.pace is not None:
        rate = plan.read_bytes_per_step / plan.pace.step_s
        yield f"reading     {plan.read_bytes_per_step / 1e6:.2f} MB a step, {rate / 1e6:.2f} MB/s over all ranks"
    if plan.pace is not None:
        p = plan.pace
        yield (
            f"pace        {p.step_s:.4g} s a step, {p.start_s:.0f} s to start, {p.checkpoint_s:.1f} s a checkpoint, "
            f"{p.end_s:.0f} s to end ({p.basis})"
        )
    for s in plan.stages:
        yield f"hours       {s.stage:<6} {'unknown' if s.seconds is None else f'{s.seconds / 3600:.3f}'}  ({s.basis})"
    total = plan.seconds
    yield f"hours       in all {'unknown' if total is None else f'{total / 3600:.3f}'}"
