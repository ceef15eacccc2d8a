"""From a recipe to batches: opens the teacher columns, checks them against the student, plans all phases and loads micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
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
from speechkd.losses import LOSSES, LossConfig
from speechkd.losses.base import ClipLoss
from speechkd.models.collate import Collator, Row
from speechkd.models.model_folder import model_positions, text_config
from speechkd.models.prompt import MAX_METADATA_CHARS, Prompt, tokenizer_digest
from speechkd.recipe import Recipe
from speechkd.stages.inputs.columns import ColumnText, column_spec, other_column
from speechkd.stages.inputs.corpora import Corpus, open_corpora
from speechkd.stages.inputs.cost import plan_cost
from speechkd.stages.inputs.gating import GateResult, apply_gates
from speechkd.stages.inputs.lengths import LeftOut, Room, audio_positions
from speechkd.stages.inputs.prompt import teacher_prompts
from speechkd.stages.inputs.rows import RowMaker, compared_with
from speechkd.teachers.live_config import LiveConfig, SelfConfig, TextLlmConfig, column_of
from speechkd.train.schedule import Schedule, Segment


@dataclass(frozen=True, slots=True)
class TrainSource:
    """The examples of one stream from one corpus; a plan refers to them by the number of the source."""

    stream: str
    corpus: Corpus
    reader: Reader
    plan_source: PlanSource
    """the finished answers of the training splits that the gates keep; a truncated answer would teach not to stop"""
    gate_result: GateResult | None = None
    """what the gates keep of the whole column; None where no gate is set"""
    column_texts: Mapping[str, ColumnText] = field(default_factory=dict)
    """by name, the columns whose text live teachers read for these examples"""
    left_out: LeftOut = LeftOut()
    """examples that are too long for a model or the plan"""

    def words(self, row: int) -> dict[str, str]:
        """column -> its text of the clip of example `row`."""
        if not self.column_texts:
            return {}
        assert self.reader.column is not None
        shard, offset = self.reader.column.sample_of(row)
        sample = int(self.corpus.shards.starts[shard]) + offset
        return {name: column_text.text(sample) for name, column_text in self.column_texts.items()}

    @property
    def role(self) -> str:
        """The teacher role of the stream."""
        return self.stream.partition("/")[0]


def open_train_sources(recipe: Recipe, prompt: Prompt, held_out: str = "") -> list[TrainSource]:
    """Open the columns of the chosen regime, with the signals that its losses need; of the split `held_out` instead of those to train on.

    Raises InputError for a column that is missing, made with other settings than the recipe's, unfit for this student, or too long for it.
    """
    sources = []
    corpora = open_corpora(recipe.data)
    positions, student = audio_positions(recipe.student), model_positions(recipe.student.llm, recipe.student.config_root)
    row_maker = cache(lambda: RowMaker(recipe, prompt, teacher_prompts(recipe.live, prompt, recipe.prompt.template)))
    for stream in recipe.train.streams:
        role, _, text = stream.partition("/")
        spec = column_spec(role, recipe.teachers[role], recipe.prompt, prompt)
        signals = spec.signals.names & frozenset(signal for c in recipe.losses.values() for signal in recipe.stored_signals(c, role))
        for corpus in corpora:
            if not corpus.config.weight(role) or (held_out and held_out not in corpus.shards.splits()):
                continue
            if spec.name not in corpus.shards.column_names():
                raise InputError(other_column(corpus, role, spec))
            column = corpus.shards.column(spec.name)
            if changes := column.spec.differs_from(spec):
                raise InputError(
                    f"column `{spec.name}` of corpus `{corpus.card.name}` was made with {'; '.join(changes)}: run "
                    "`speechkd teach`, or change it back"
                )
            _check_origin(recipe, role, column, prompt)
            reader = Reader(corpus.shards, column, signals)
            source = reader.source(stream, [held_out] if held_out else corpus.config.train_splits, stops=("eos",))
            gate_result = apply_gates(recipe.gates, recipe.teachers[role], corpus, column) if recipe.gates.active else None
            if gate_result is not None:
                source = source.keep(gate_result.keep_N)
                if not len(source):
                    raise InputError(f"the gates drop every answer of column `{spec.name}`: {gate_result.line()}; loosen them (gates)")
            texts_read = _columns_read(recipe.live, recipe.losses, stream)
            column_texts = {name: ColumnText(corpus, name, "live.*.reads.column") for name in texts_read}
            for column_text in column_texts.values():
                source = column_text.keep(source, reader, f"stream `{stream}`, corpus `{corpus.card.name}`")
            if text:  # read, not heard
                source = replace(source, seconds_N=np.zeros_like(source.seconds_N), clip_N=None)
            opened = TrainSource(stream, corpus, reader, source, gate_result, column_texts)
            room = Room(
                plan=recipe.plan,
                student=student,
                llm=recipe.student.llm,
                readers=_positions_of_readers(recipe, stream),
                positions=positions,
            )
            sources.append(_fitting(opened, room, recipe.train.streams.index(stream), row_maker))
    return sources


def _positions_of_readers(recipe: Recipe, stream: str) -> dict[str, int | None]:
    """By live teacher that reads a stream's examples, the positions of its language model."""
    blocks = {name: recipe.live[name] for name in compared_with(recipe.losses, stream)}
    models = {
        name: block.model if isinstance(block, TextLlmConfig) else recipe.student.llm for name, block in blocks.items() if _reads(block)
    }
    return {name: model_positions(model, recipe.student.config_root) for name, model in models.items()}


def _reads(block: LiveConfig) -> bool:
    return isinstance(block, (TextLlmConfig, SelfConfig))


def _fitting(opened: TrainSource, room: Room, stream: int, row_maker: Callable[[], RowMaker]) -> TrainSource:
    """The source without the examples that are too long for a model or the plan."""
    column, source, shards = opened.reader.column, opened.plan_source, opened.corpus.shards
    assert column is not None, "a training source reads a column"
    chosen = slice(None) if source.row_N is None else source.row_N
    index = column.read_index(["prompt_tokens", "sample"])
    prompt_N, sample_N = (index[name].to_numpy()[chosen].astype(np.int64) for name in ("prompt_tokens", "sample"))
    reads_N = np.zeros_like(prompt_N)
    if room.readers or opened.stream.endswith("/text"):  # no token is shorter than a byte
        reads_N += shards.read_index(["json_bytes"])["json_bytes"].to_numpy()[sample_N] + 4 * MAX_METADATA_CHARS * bool(opened.column_texts)
    plain = Reader(shards, column, frozenset())

    def row_of(row: int) -> Row:
        return row_maker()(stream, plain.read(row, hear=False), opened.words(row))

    kept, left_out = room.fitting(source, prompt_N, reads_N, row_of, column.key_of)
    return replace(opened, plan_source=kept, left_out=left_out)


def _columns_read(live: Mapping[str, LiveConfig], losses: Mapping[str, LossConfig], stream: str) -> list[str]:
    """The columns whose text live teachers read for examples of a stream."""
    teachers = (live[name] for name in compared_with(losses, stream))
    return list(dict.fromkeys(column for config in teachers if (column := column_of(config))))


def _check_origin(recipe: Recipe, role: str, column: Column, prompt: Prompt) -> None:
    """Raises InputError for log-probs over other ids or at another temperature than the student's: training would not notice."""
    tokenizer = tokenizer_digest(prompt.tokenizer)
    if column.spec.tokenizer != tokenizer:
        raise InputError(
            f"column `{column.name}` was made with another tokenizer than the student's (`{recipe.student.llm}`): run "
            "`speechkd teach` on this recipe"
        )
    for loss, config in recipe.losses.items():
        for signal in sorted(recipe.stored_signals(config, role) & column.spec.signals.names & {"topk", "sampled"}):
            width, temperature = text_config(recipe.student.llm, recipe.student.config_root).vocab_size, config.needs().temperature
            student = Origin(tokenizer=tokenizer, vocab_size=width, temperature=1.0 if temperature is None else temperature)
            if reason := column.spec.origin(signal).unfit_for(student):
                raise InputError(f"column `{column.name}`: signal `{signal}` {reason} (loss `{loss}`)")


def make_schedule(recipe: Recipe, sources: Sequence[TrainSource], grown_at: int = 0) -> Schedule:
    """The plan of every phase, from step `grown_at` on.

    An example is visited as often as the phase's passes over its stream times its corpus's weight.
    """
    segments, cost = [], plan_cost(recipe.student)
    for number, phase in enumerate(recipe.train.phases):
        passes = [phase.mix.get(source.stream, 0) * source.corpus.config.weight(source.role) for source in sources]
        used = [i for i, count in enumerate(passes) if count > 0]
        plan_sources = [replace(sources[i].plan_source, passes=passes[i]) for i in used]
        plan = Plan(recipe.plan, plan_sources, derive(recipe.seed, "plan", number, phase.name), cost)
        segments.append(Segment(phase, plan, used))
    return Schedule(segments, grown_at)


def make_loader(
    recipe: Recipe, sources: Sequence[TrainSource], prompt: Prompt, collator: Collator
) -> Callable[[Sequence[ExampleRef]], Batch]:
    """A function from one micro-batch of the plan to a collated batch, for any number of threads."""
    prompts = teacher_prompts(recipe.live, prompt, recipe.prompt.template)
    make_row = RowMaker(recipe, prompt, prompts)
    attention = any("attention" in config.needs().stored for config in recipe.losses.values())
    collator = replace(
        collator,
        signals=_zeros(sources),
        attention=attention,
        views=tuple(prompts),
        share_clips=not attention and _rows_only(recipe.losses),
    )
    tokenizer_lock = Lock()  # a tokenizer serves one thread at a time
    numbers = [recipe.train.streams.index(source.stream) for source in sources]

    def load(refs: Sequence[ExampleRef]) -> Batch:
        rows = []
        decoded: dict[tuple[int, int], np.ndarray] = {}  # the turns of a clip stand together in a plan
        for ref in refs:
            source = sources[ref.source]
            clip = (ref.source, source.reader.sample_of(ref.row))
            example = source.reader.read(ref.row, hear=not source.stream.endswith("/text") and clip not in decoded)
            if clip in decoded:
                example = replace(example, samples_T=decoded[clip])
            elif example.samples_T is not None:
                decoded[clip] = example.samples_T
            with tokenizer_lock:
                rows.append(make_row(numbers[ref.source], example, source.words(ref.row)))
        return collator(rows)

    return load


def _rows_only(losses: Mapping[str, LossConfig]) -> bool:
    """Whether every loss reads positions of responses, so that it does not matter how often a clip was encoded."""
    return all(config.positions() != "audio" and not isinstance(LOSSES.get(config.kind), ClipLoss) for config in losses.values())


def _zeros(sources: Sequence[TrainSource]) -> TeacherSignals:
    """One row of zeros for every signal, so that a batch without examples has the same tensors as one with examples."""
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
