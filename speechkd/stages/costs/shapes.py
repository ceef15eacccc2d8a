"""The shapes of a recipe's micro-batches: from its own plan where the data is there, else from the plan's limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from speechkd.core.errors import InputError
from speechkd.core.types import Batch
from speechkd.models.exported import load_features, make_collator
from speechkd.models.flops import ModelFlops
from speechkd.models.student import Student
from speechkd.recipe import Recipe
from speechkd.stages.inputs.corpora import open_corpora
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.inputs.sources import make_loader, make_schedule, open_train_sources

COUNTED = 24
"""Micro-batches that are read and collated to learn the shapes"""
PROMPT_POSITIONS = 64
"""Assumed of each example's prompt where there is no data yet to read it from"""
SAMPLE_RATE = 16_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """Of a micro-batch. Means are over what was looked at; `rows` to `tokens` describe the one with most positions."""

    basis: str
    flops: float
    """mean, forward and backward"""
    examples: float
    """mean"""
    positions: float
    """mean number of real positions of the language model"""
    audio_seconds: float
    """mean"""
    rows: int
    length: int
    clips: int
    frames: int
    """encoder frames of a clip, padding included"""
    tokens: int
    """supervised"""


def step_shapes(recipe: Recipe, student: Student, flops: ModelFlops) -> Shapes:
    """Shapes of the recipe's micro-batches. `student` is on the meta device."""
    try:
        open_corpora(recipe.data)  # first, so that a hub is asked for a tokenizer only where there are shards
        batches = list(_batches(recipe, student))
    except InputError as missing:
        return _limits(recipe, student, flops, str(missing))
    largest = max(batches, key=lambda batch: batch.ids_BS.numel())
    return Shapes(
        basis=f"{len(batches)} micro-batches of the plan",
        flops=fmean(float(flops.of_batch(batch)) for batch in batches),
        examples=fmean(batch.examples for batch in batches),
        positions=fmean(float(batch.mask_BS.sum()) for batch in batches),
        audio_seconds=fmean(batch.seconds for batch in batches),
        rows=largest.ids_BS.shape[0],
        length=largest.ids_BS.shape[1],
        clips=len(largest.clips.frames_C),
        frames=student.encoder.hearing.heard(largest.clips.frames_C.tolist()),
        tokens=len(largest.response_T),
    )


def _batches(recipe: Recipe, student: Student) -> Iterator[Batch]:
    """Micro-batches spread evenly over the run, as training would collate them."""
    prompt = open_prompt(recipe.prompt, recipe.student.llm)
    sources = open_train_sources(recipe, prompt)
    schedule = make_schedule(recipe, sources)
    load = make_loader(recipe, sources, prompt, make_collator(student, load_features(recipe.student.encoder)))
    M = recipe.plan.micro_batches
    count = min(COUNTED, schedule.steps * M)
    for index in range(count):
        number = index * (schedule.steps * M) // count
        yield load(schedule.micro_batch(number // M, number % M))


def _limits(recipe: Recipe, student: Student, flops: ModelFlops, why: str) -> Shapes:
    """A micro-batch as full as the plan lets it be, each clip filling the encoder's window."""
    hearing, plan = student.encoder.hearing, recipe.plan
    window_s = hearing.window * hearing.hop / SAMPLE_RATE
    rows = max(1, min(plan.max_examples, int(plan.max_seconds / window_s) or 1))
    audio = student.projector.positions(hearing.window)
    text = plan.max_tokens // rows
    length = PROMPT_POSITIONS + audio + text
    ours = flops.student.of(rows * length, rows * length**2, rows * text)
    ours += sum(view.of(rows * (length - audio), rows * (length - audio) ** 2, rows * text) for view in flops.views.values())
    return Shapes(
        basis=f"the plan's limits, not the data's lengths: {why}",
        flops=float(ours) + flops.encoder(rows, hearing.window) + flops.projected * rows * audio,
        examples=rows,
        positions=rows * length,
        audio_seconds=rows * window_s,
        rows=rows,
        length=length,
        clips=rows,
        frames=hearing.window,
        tokens=rows * text,
    )
