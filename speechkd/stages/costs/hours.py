"""Wall-clock hours of each stage of a recipe on a cluster, each with what it rests on."""

from __future__ import annotations

from dataclasses import dataclass

from speechkd.cluster.profile import ClusterProfile
from speechkd.core.errors import InputError
from speechkd.core.files import read_json
from speechkd.evaluation.controls import asked_alike, by_task
from speechkd.models.student import Student
from speechkd.recipe import Recipe
from speechkd.stages.costs.pace import Pace
from speechkd.stages.costs.shapes import PROMPT_POSITIONS
from speechkd.stages.inputs.budget import Budget, budgets
from speechkd.stages.inputs.columns import column_spec
from speechkd.stages.inputs.corpora import evaluation_questions, open_corpora
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.run import SECONDS

CLIP_S = 0.01
"""Seconds that a core needs to decode, check and write a clip of ten seconds; an estimate"""
GENERATING = 0.1
"""Share of training's FLOP/s that answering reaches, a token at a time; an estimate"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageHours:
    """One stage; `seconds` is None where nothing is known to derive it from."""

    stage: str
    seconds: float | None
    basis: str


def stage_hours(
    recipe: Recipe, profile: ClusterProfile, student: Student, pace: Pace | None, speed: float | None, tokens_per_s: float
) -> list[StageHours]:
    """shard, teach, train, eval. `speed`: FLOP/s of one rank in training; `tokens_per_s`: of one task of the teacher's array."""
    recorded = _recorded(recipe)
    stages = [_shard(recipe, profile), _teach(recipe, profile, tokens_per_s), _train(recipe, pace), _evaluate(recipe, student, speed)]
    return [
        StageHours(stage=s.stage, seconds=recorded[s.stage], basis=f"measured in `{recipe.run_dir}`") if _prefers(s, recorded) else s
        for s in stages
    ]


def _prefers(estimate: StageHours, recorded: dict[str, float]) -> bool:
    """Whether what an earlier run took says more than the estimate: not for training, whose pace was read from that very run."""
    return estimate.stage in recorded and estimate.stage != "train" and estimate.seconds != 0.0


def _recorded(recipe: Recipe) -> dict[str, float]:
    path = recipe.run_dir / SECONDS
    return {str(stage): float(seconds) for stage, seconds in read_json(path).items()} if path.is_file() else {}


def _shard(recipe: Recipe, profile: ClusterProfile) -> StageHours:
    try:
        open_corpora(recipe.data)
        return StageHours(stage="shard", seconds=0.0, basis="the shards are there")
    except InputError:
        pass
    try:
        samples = {budget.corpus: budget.samples for budget in budgets(recipe)}
    except InputError as missing:
        return StageHours(stage="shard", seconds=None, basis=str(missing))
    cores = profile.shard.max_array * (profile.shard.cpus or 1)
    count = sum(samples.values())
    return StageHours(stage="shard", seconds=count * CLIP_S / cores, basis=f"estimated: {count:,} clips at 10 ms on {cores} cores")


def _teach(recipe: Recipe, profile: ClusterProfile, tokens_per_s: float) -> StageHours:
    try:
        if not (missing := _untaught(recipe)):
            return StageHours(stage="teach", seconds=0.0, basis="the columns are there")
        found: list[Budget] = [budget for budget in budgets(recipe) if budget.role in missing]
    except InputError as unknown:
        return StageHours(stage="teach", seconds=None, basis=str(unknown))
    tasks = profile.teach.max_array
    hours = sum(budget.hours(tokens_per_s) for budget in found) / tasks
    return StageHours(stage="teach", seconds=hours * 3600, basis=f"{tasks} tasks at {tokens_per_s:,.0f} tokens/s each (--tokens-per-s)")


def _untaught(recipe: Recipe) -> list[str]:
    """Roles whose column some corpus lacks: all of them where there are no shards."""
    try:
        corpora = open_corpora(recipe.data)
    except InputError:
        return recipe.train.roles
    prompt = open_prompt(recipe.prompt, recipe.student.llm)
    names = {role: column_spec(role, recipe.teachers[role], recipe.prompt, prompt).name for role in recipe.train.roles}
    return [role for role, name in names.items() if any(c.config.weight(role) and name not in c.shards.column_names() for c in corpora)]


def _train(recipe: Recipe, pace: Pace | None) -> StageHours:
    if pace is None:
        return StageHours(stage="train", seconds=None, basis="nothing to go by: set `gpu_tflops` in the profile, or use --measure")
    checkpoints = (recipe.train.steps - 1) // recipe.train.checkpoint_every
    return StageHours(stage="train", seconds=pace.train_s(recipe.train.steps, checkpoints), basis=pace.basis)


def _evaluate(recipe: Recipe, student: Student, speed: float | None) -> StageHours:
    if speed is None:
        return StageHours(stage="eval", seconds=None, basis="needs the pace of training")
    config = recipe.evaluation
    try:
        asked = [question for corpus in open_corpora(recipe.data) for question in evaluation_questions(config, corpus)]
        heard_again = [question for question in asked if question.split == next(iter(config.splits.values()))]
        varied = sum(len(group) for group in by_task(heard_again).values() if not asked_alike(group))
        count, on_main, basis = len(asked), len(heard_again), "questions"
    except InputError:
        on_main, varied = config.limit or 1000, 0
        count, basis = on_main * len(config.splits), "questions, as many as the recipe's limit lets through"
    answers = count + on_main * (config.controls + (config.reads is not None) + len(config.more_controls))
    answers += varied * config.controls * config.derangements
    hearing = student.encoder.hearing
    llm = sum(p.numel() for p in student.llm.lm.parameters())
    encoder = sum(p.numel() for p in student.encoder.parameters())
    heard = PROMPT_POSITIONS + student.projector.positions(hearing.window)
    read = 2 * (encoder * hearing.window + llm * heard) / speed
    written = 2 * llm * config.max_new_tokens / (speed * GENERATING)
    return StageHours(stage="eval", seconds=answers * (read + written), basis=f"estimated: {answers:,} answers to {count:,} {basis}")
