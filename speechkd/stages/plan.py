"""`speechkd plan` and `speechkd train --dry-run`: prints what a recipe will need, before any process or GPU is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from speechkd.core.errors import EXIT_FAILED, InputError
from speechkd.engine.ds_config import read_ds_config, stage
from speechkd.models.lora import lora_layers
from speechkd.models.student import Student, meta_student
from speechkd.models.student_config import StudentConfig
from speechkd.recipe import Recipe
from speechkd.stages.assembly.model_facts import live_parameters
from speechkd.stages.assembly.preflight import check_method
from speechkd.stages.inputs.budget import budgets
from speechkd.stages.inputs.corpora import check_clips, open_corpora
from speechkd.stages.inputs.names import check_columns, check_training_names
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.inputs.sources import make_schedule, open_train_sources
from speechkd.stages.run_folder import Resume, check_run
from speechkd.teachers.live_config import LiveConfig
from speechkd.train.schedule import Schedule

GIB = 2**30
OPTIMISER_BYTES = 4 + 4 + 4 + 4
"""Per trained parameter: float32 master weight, two Adam moments, float32 gradient"""


def plan(recipe: Recipe, ranks: int, tokens_per_s: float = 1000.0, to_train: bool = False, resume: Resume = "auto") -> int:
    """Build the student on the meta device and print parameters, memory per rank, steps, what the teacher costs, data. Allocates nothing.

    Raises InputError for whatever would stop the real run: losses that the teacher cannot feed, ranks that the plan cannot deal out,
    missing configurations. Shards that are not there yet are reported, not refused; `to_train`, exit code 1 says that they are missing, and
    splits, clips and run folder are checked as training checks them.
    """
    ds_config = read_ds_config(Path(recipe.deepspeed))
    recipe.plan.per_rank(ranks)
    student = meta_student(recipe.student)
    notes = check_method(recipe, dry=True)
    if to_train:
        _check_names(recipe)
    _print_parameters(recipe.student, student)
    live_counts = live_parameters(recipe.live, recipe.student)
    _print_live(recipe.live, live_counts)
    _print_memory(student, recipe.student.dtype, sum(live_counts.values()), ranks, stage(ds_config))
    print(
        f"regime      {recipe.train.regime}: " + ", then ".join(f"{p.name} {p.steps} steps of {_mix(p.mix)}" for p in recipe.train.phases)
    )
    budget = f"{recipe.plan.micro_batches} micro-batches of at most {recipe.plan.max_examples} examples"
    print(f"steps       {recipe.train.steps} x {budget}, {ranks} ranks")
    print("losses      " + ", ".join(f"{name} (weight {config.weight:g})" for name, config in recipe.losses.items()))
    for note in notes:
        print(f"not checked {note}")
    _print_teachers(recipe, tokens_per_s)
    schedule = _print_data(recipe)
    if not to_train:
        return 0
    if schedule is None:
        return EXIT_FAILED
    check_clips(open_corpora(recipe.data), recipe.student.encoder, recipe.train.roles, recipe.evaluation)
    newest = check_run(recipe.run_dir, recipe, schedule.digest, resume)
    print(f"run folder  {recipe.run_dir}: {f'continues from {newest.name}' if newest is not None else 'begins at step 0'}")
    return 0


def _check_names(recipe: Recipe) -> None:
    """Refuse names that the data does not know, where it is there."""
    try:
        corpora = open_corpora(recipe.data)
    except InputError:
        return  # told as `data not ready`
    check_training_names(recipe, corpora)
    check_columns(recipe, corpora)


def _print_parameters(config: StudentConfig, student: Student) -> None:
    parts: tuple[tuple[str, str, nn.Module], ...] = (
        ("encoder", config.encoder, student.encoder),
        ("llm", config.llm, student.llm),
        ("projector", student.projector.__class__.__name__, student.projector),
        ("layer mix", "softmax of all" if config.encoder_states == "weighted_sum" else "the last layer", student.mix),
    )
    if student.lora is not None:
        layers = lora_layers(student)
        count = sum(layer.lora_A.numel() + layer.lora_B.numel() for layer in layers.values())
        print(f"lora        {count:>15,} parameters, {count:>12,} trained  ({len(layers)} modules, scope {student.lora.scope})")
    for part, name, module in parts:
        count = sum(p.numel() for p in module.parameters())
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        print(f"{part:<11} {count:>15,} parameters, {trained:>12,} trained  ({name})")


def _print_live(live: Mapping[str, LiveConfig], counts: Mapping[str, int]) -> None:
    for name, config in live.items():
        what = f"{counts[name]:>15,} parameters of its own" if name in counts else "the student's own language model, without LoRA"
        print(f"live        {what}  ({name}: {config.kind})")


def _print_memory(student: Student, dtype: str, live: int, ranks: int, zero: int) -> None:
    """`live`: parameters of live teachers' own models; `zero`: the ZeRO stage."""
    size = 2 if dtype == "bfloat16" else 4
    frozen = (sum(p.numel() for p in student.parameters() if not p.requires_grad) + live) * size
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    split = ranks if zero == 3 else 1
    largest = max(sum(p.numel() for p in m.parameters(recurse=False)) for m in student.modules()) * size
    optimiser = trained * OPTIMISER_BYTES / ranks
    total = (frozen + trained * size) / split + optimiser + largest
    print(
        f"memory      {total / GIB:.2f} GiB a rank on {ranks} ranks, ZeRO-{zero}, without activations: "
        f"frozen {frozen / split / GIB:.2f}, trained {trained * size / split / GIB:.3f}, optimiser {optimiser / GIB:.3f}, "
        f"largest gathered module {largest / GIB:.2f}"
    )


def _print_teachers(recipe: Recipe, tokens_per_s: float) -> None:
    try:
        for budget in budgets(recipe):
            print("\n".join(budget.lines(tokens_per_s)))
    except InputError as missing:
        print(f"teacher     not known yet: {missing}")


def _print_data(recipe: Recipe) -> Schedule | None:
    """Print what training would read, and return its order; None where it is not there yet."""
    try:
        open_corpora(recipe.data)  # first, so that a hub is asked for a tokenizer only where there are shards
        sources = open_train_sources(recipe, open_prompt(recipe.prompt, recipe.student.llm))
    except InputError as missing:
        print(f"data        not ready: {missing}")
        return None
    schedule = make_schedule(recipe, sources)
    for train_source in sources:
        hours = float(train_source.plan_source.seconds_N.sum()) / 3600
        examples, column = len(train_source.plan_source.shard_N), train_source.reader.column
        print(
            f"data        {train_source.stream}: {examples:,} examples of {train_source.corpus.card.name}, {hours:.2f} h, "
            f"column {column and column.name}"
        )
        if train_source.gate_result is not None:
            print(f"gates       {train_source.role}: {train_source.gate_result.line()}")
        if train_source.left_out.count:
            print(f"left out    {train_source.stream}: {train_source.left_out.line()}")
    for segment in schedule.segments:
        per_epoch = segment.plan.steps_per_epoch(0)
        print(f"epochs      {segment.phase.name}: {segment.phase.steps / per_epoch:.2f} of {per_epoch} steps each")
    return schedule


def _mix(mix: dict[str, float]) -> str:
    return " + ".join(f"{passes:g} x {stream}" for stream, passes in mix.items())
