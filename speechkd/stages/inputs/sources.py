"""From a recipe to batches: columns opened and checked against the student, the plan of all phases, and the loader of one micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.core.seeds import derive
from speechkd.core.types import Batch, Origin, TeacherSignals
from speechkd.data.columns.column import Column
from speechkd.data.plan.plan import ExampleRef, Plan, PlanSource
from speechkd.data.reader import Reader
from speechkd.models.collate import Collator
from speechkd.models.prompt import Prompt, tokenizer_digest
from speechkd.recipe import Recipe
from speechkd.stages.assembly.model_facts import teacher_prompts, vocabulary_width
from speechkd.stages.inputs.columns import ColumnText, column_spec, other_column
from speechkd.stages.inputs.corpora import Corpus, open_corpora
from speechkd.stages.inputs.gating import GateResult, gate
from speechkd.stages.inputs.rows import RowMaker, compared_with
from speechkd.teachers.live_config import column_of
from speechkd.train.schedule import Schedule, Segment


@dataclass(frozen=True, slots=True)
class TrainSource:
    """One (stream, corpus): what a plan's source number stands for."""

    stream: str
    corpus: Corpus
    reader: Reader
    plan_source: PlanSource
    """the training split's finished answers that the recipe's gates keep; a truncated one would teach not to stop"""
    gate_result: GateResult | None = None
    """what the gates kept of the whole column, where any is set"""
    column_texts: Mapping[str, ColumnText] = field(default_factory=dict)
    """columns of the corpus that live teachers read beside these examples"""

    def words(self, row: int) -> dict[str, str]:
        """What those columns say of the clip of example `row`."""
        if not self.column_texts:
            return {}
        assert self.reader.column is not None
        shard, place = self.reader.column.sample_of(row)
        sample = int(self.corpus.shards.starts[shard]) + place
        return {name: column_text.text(sample) for name, column_text in self.column_texts.items()}

    @property
    def role(self) -> str:
        """The teacher's."""
        return self.stream.partition("/")[0]


def open_train_sources(recipe: Recipe, prompt: Prompt) -> list[TrainSource]:
    """The columns of the chosen regime, reading the signals that its losses need.

    Raises InputError where one is missing, is not what the recipe describes, or is bound to another student.
    """
    sources = []
    corpora = open_corpora(recipe)
    for stream in recipe.train.streams:
        role, _, text = stream.partition("/")
        spec = column_spec(recipe, role, prompt)
        signals = spec.signals.names & frozenset(signal for c in recipe.losses.values() for signal in recipe.stored_signals(c, role))
        for corpus in corpora:
            if not corpus.config.weight(role):
                continue
            if spec.name not in corpus.shards.column_names():
                raise InputError(other_column(corpus, role, spec))
            column = corpus.shards.column(spec.name)
            if changes := column.spec.differs_from(spec):
                raise InputError(f"column `{spec.name}` of corpus `{corpus.card.name}` was made with {'; '.join(changes)}")
            _check_origin(recipe, role, column, prompt)
            reader = Reader(corpus.shards, column, signals)
            source = reader.source(stream, corpus.config.train_splits, stops=("eos",))
            gate_result = gate(recipe, role, corpus, column) if recipe.gates.active else None
            if gate_result is not None:
                source = source.keep(gate_result.keep_N)
                if not len(source):
                    raise InputError(f"the gates drop every answer of column `{spec.name}`: {gate_result.line()} (gates)")
            column_texts = {name: ColumnText(corpus, name, "live.*.reads.column") for name in _columns_read(recipe, stream)}
            for column_text in column_texts.values():
                source = column_text.keep(source, reader, f"stream `{stream}`, corpus `{corpus.card.name}`")
            if text:  # read, not heard
                source = replace(source, seconds_N=np.zeros_like(source.seconds_N))
            sources.append(TrainSource(stream, corpus, reader, source, gate_result, column_texts))
    return sources


def _columns_read(recipe: Recipe, stream: str) -> list[str]:
    """Columns that the live teachers read which some loss compares examples of a stream with."""
    readers = (recipe.live[name] for name in compared_with(recipe, stream))
    return list(dict.fromkeys(column for live in readers if (column := column_of(live))))


def _check_origin(recipe: Recipe, role: str, column: Column, prompt: Prompt) -> None:
    """Log-probs over other ids, or at another temperature, than the student's would train in silence."""
    tokenizer = tokenizer_digest(prompt.tokenizer)
    if column.spec.tokenizer != tokenizer:
        raise InputError(f"column `{column.name}` was made with another tokenizer than the student's (`{recipe.student.llm}`)")
    for loss, config in recipe.losses.items():
        for signal in sorted(recipe.stored_signals(config, role) & column.spec.signals.names & {"topk", "sampled"}):
            width = vocabulary_width(recipe, "")
            temperature = config.needs().temperature
            student = Origin(tokenizer=tokenizer, vocab_size=width, temperature=1.0 if temperature is None else temperature)
            if reason := column.spec.origin(signal).unfit_for(student):
                raise InputError(f"column `{column.name}`: signal `{signal}` {reason} (loss `{loss}`)")


def make_schedule(recipe: Recipe, sources: Sequence[TrainSource]) -> Schedule:
    """The phases' plans over the sources of their streams: passes of the phase times the weight of the corpus."""
    segments = []
    for number, phase in enumerate(recipe.train.phases):
        passes = [phase.mix.get(source.stream, 0) * source.corpus.config.weight(source.role) for source in sources]
        used = [i for i, count in enumerate(passes) if count > 0]
        plan_sources = [replace(sources[i].plan_source, passes=passes[i]) for i in used]
        plan = Plan(recipe.plan, plan_sources, derive(recipe.seed, "plan", number, phase.name))
        segments.append(Segment(phase, plan, used))
    return Schedule(segments)


def make_loader(
    recipe: Recipe, sources: Sequence[TrainSource], prompt: Prompt, collator: Collator
) -> Callable[[Sequence[ExampleRef]], Batch]:
    """A function from one micro-batch of the plan to a collated batch, for any number of threads."""
    prompts = teacher_prompts(recipe, prompt)
    make_row = RowMaker(recipe, prompt, prompts)
    attention = any("attention" in config.needs().stored for config in recipe.losses.values())
    collator = replace(collator, signals=_zeros(sources), attention=attention, views=tuple(prompts))
    asking = Lock()  # a tokenizer serves one thread at a time
    numbers = [recipe.train.streams.index(source.stream) for source in sources]

    def load(refs: Sequence[ExampleRef]) -> Batch:
        rows = []
        for ref in refs:
            source = sources[ref.source]
            example = source.reader.read(ref.row, hear=not source.stream.endswith("/text"))
            with asking:
                rows.append(make_row(numbers[ref.source], example, source.words(ref.row)))
        return collator(rows)

    return load


def _zeros(sources: Sequence[TrainSource]) -> TeacherSignals:
    """One row of zeros of every signal that is read, so that a batch without examples has the same tensors as one with."""
    zeros: dict[str, Tensor] = {}
    for source in sources:
        column = source.reader.column
        assert column is not None, "a training source reads a column"
        of_tokens = None if source.reader.signals is None else source.reader.signals - {"attention"}  # that one is of the whole clip
        for name, tensor in column.signals(source.plan_source.row(0), of_tokens).items():
            zero = torch.zeros(1, *tensor.shape[1:], dtype=tensor.dtype)
            if name in zeros and zeros[name].shape != zero.shape and not name.startswith("sampled"):
                shapes = f"{list(zeros[name].shape[1:])} and {list(zero.shape[1:])} a token"
                raise InputError(f"columns of one recipe must store equal shapes of `{name}`, have {shapes}")
            zeros[name] = zero
    return TeacherSignals(**zeros)
