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
from speechkd.core.types import Batch, Origin
from speechkd.data.columns.column import Column
from speechkd.data.plan.plan import ExampleRef, Plan, PlanSource
from speechkd.data.reader import Reader
from speechkd.models.collate import Collator
from speechkd.models.prompt import Prompt, tokenizer_digest
from speechkd.recipe import Recipe
from speechkd.stages.described import Described
from speechkd.stages.inputs import Corpus, column_spec, open_corpora, other_column, student_vocabulary
from speechkd.stages.method.live_models import teacher_prompts
from speechkd.stages.quality import Kept, gate
from speechkd.stages.rows import RowMaker, compared_with
from speechkd.teachers.live_config import column_of
from speechkd.train.schedule import Schedule, Segment


@dataclass(frozen=True, slots=True)
class Supply:
    """One (stream, corpus): what a plan's source number stands for."""

    stream: str
    corpus: Corpus
    reader: Reader
    source: PlanSource
    """the training split's finished answers that the recipe's gates keep; a truncated one would teach not to stop"""
    kept: Kept | None = None
    """what the gates kept of the whole column, where any is set"""
    described: Mapping[str, Described] = field(default_factory=dict)
    """columns of the corpus that live teachers read beside these examples"""

    def words(self, row: int) -> dict[str, str]:
        """What those columns say of the clip of example `row`."""
        if not self.described:
            return {}
        assert self.reader.column is not None
        shard, place = self.reader.column.sample_of(row)
        sample = int(self.corpus.shards.starts[shard]) + place
        return {name: described.text(sample) for name, described in self.described.items()}

    @property
    def role(self) -> str:
        """The teacher's."""
        return self.stream.partition("/")[0]


def open_supplies(recipe: Recipe, prompt: Prompt) -> list[Supply]:
    """The columns of the chosen regime, reading the signals that its losses need.

    Raises InputError where one is missing, is not what the recipe describes, or is bound to another student.
    """
    supplies = []
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
            kept = gate(recipe, role, corpus, column) if recipe.gates.active else None
            if kept is not None:
                source = source.keep(kept.keep_N)
                if not len(source):
                    raise InputError(f"the gates drop every answer of column `{spec.name}`: {kept.line()} (gates)")
            described = {name: Described(corpus, name) for name in _columns_read(recipe, stream)}
            for words in described.values():
                source = words.keep(source, reader, f"stream `{stream}`, corpus `{corpus.card.name}`")
            if text:  # read, not heard
                source = replace(source, seconds_N=np.zeros_like(source.seconds_N))
            supplies.append(Supply(stream, corpus, reader, source, kept, described))
    return supplies


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
            width = student_vocabulary(recipe)
            student = Origin(tokenizer=tokenizer, vocab_size=width, temperature=getattr(config, "temperature", 1.0))
            if reason := column.spec.origin(signal).unfit_for(student):
                raise InputError(f"column `{column.name}`: signal `{signal}` {reason} (loss `{loss}`)")


def make_schedule(recipe: Recipe, supplies: Sequence[Supply]) -> Schedule:
    """The phases' plans over the supplies of their streams: passes of the phase times the weight of the corpus."""
    segments = []
    for number, phase in enumerate(recipe.train.phases):
        passes = [phase.mix.get(supply.stream, 0) * supply.corpus.config.weight(supply.role) for supply in supplies]
        used = [i for i, count in enumerate(passes) if count > 0]
        sources = [replace(supplies[i].source, passes=passes[i]) for i in used]
        plan = Plan(recipe.plan, sources, derive(recipe.seed, "plan", number, phase.name))
        segments.append(Segment(phase, plan, used))
    return Schedule(segments)


def make_loader(recipe: Recipe, supplies: Sequence[Supply], prompt: Prompt, collator: Collator) -> Callable[[Sequence[ExampleRef]], Batch]:
    """A function from one micro-batch of the plan to a collated batch, for any number of threads."""
    prompts = teacher_prompts(recipe, prompt)
    make_row = RowMaker(recipe, prompt, prompts)
    attention = any(getattr(config, "attention", False) == "stored" for config in recipe.losses.values())
    collator = replace(collator, signals=_zeros(supplies), attention=attention, views=tuple(prompts))
    asking = Lock()  # a tokenizer serves one thread at a time
    numbers = [recipe.train.streams.index(supply.stream) for supply in supplies]

    def load(refs: Sequence[ExampleRef]) -> Batch:
        rows = []
        for ref in refs:
            supply = supplies[ref.source]
            example = supply.reader.read(ref.row, hear=not supply.stream.endswith("/text"))
            with asking:
                rows.append(make_row(numbers[ref.source], example, supply.words(ref.row)))
        return collator(rows)

    return load


def _zeros(supplies: Sequence[Supply]) -> dict[str, Tensor]:
    """One row of zeros of every signal that is read, so that a batch without examples has the same tensors as one with."""
    zeros: dict[str, Tensor] = {}
    for supply in supplies:
        column = supply.reader.column
        assert column is not None, "a supply reads a column"
        of_tokens = None if supply.reader.signals is None else supply.reader.signals - {"attention"}  # that one is of the whole clip
        for name, tensor in column.signals(supply.source.row(0), of_tokens).items():
            zero = torch.zeros(1, *tensor.shape[1:], dtype=tensor.dtype)
            if name in zeros and zeros[name].shape != zero.shape and not name.startswith("sampled"):
                shapes = f"{list(zeros[name].shape[1:])} and {list(zero.shape[1:])} a token"
                raise InputError(f"columns of one recipe must store equal shapes of `{name}`, have {shapes}")
            zeros[name] = zero
    return zeros
