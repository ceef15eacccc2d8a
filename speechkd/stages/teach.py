"""`speechkd teach`: a teacher answers every turn of every clip, shard by shard; its answers become a column beside the audio."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from speechkd.core.errors import DataError, InputError
from speechkd.core.locks import claimed
from speechkd.core.log import progress, say
from speechkd.data.column_writer import ColumnWriter
from speechkd.data.columns.column import Column
from speechkd.data.columns.spec import SPEC, ColumnSpec, Turn, TurnSignals
from speechkd.data.reader import Reader
from speechkd.data.storage.manifest import MANIFEST, shard_name
from speechkd.data.storage.store import remove, write_json
from speechkd.models.encoder import SAMPLE_RATE
from speechkd.models.prompt import Prompt
from speechkd.recipe import Recipe
from speechkd.stages.inputs.columns import ColumnText, column_spec
from speechkd.stages.inputs.corpora import Corpus, open_corpora
from speechkd.stages.inputs.gating import PAGE, measure_column
from speechkd.stages.inputs.names import check_names
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.teachers import TEACHERS
from speechkd.teachers.answers import FINISHED, AnswerJournal, answer_all, answer_key
from speechkd.teachers.base import Answer, Clip, Request, Scoring, Teacher, TeacherConfig
from speechkd.teachers.prompts import audio_span_text, requests

REASONS_READ = 256


def teach(
    recipe: Recipe,
    partition: tuple[int, int] = (0, 1),
    roles: list[str] | None = None,
    retry_failed: bool = False,
    repair: bool = False,
) -> list[Column | None]:
    """Make the columns that the recipe's regime trains on (or those of `roles`); shards that are done are skipped.

    `partition` (i, n): this process works on every n-th shard, from i on. `retry_failed` asks once more for answers of finished columns
    that failed or were cut. Shards of a column whose files are missing or have another size are made again; `repair` reads every byte to
    find the others, too. Returns the column of each role and corpus, None where other partitions are still at work. A teacher loads
    only if something is missing.
    """
    part, parts = partition
    if not 0 <= part < parts:
        raise InputError(f"partition {part}/{parts}: must be 0/{parts} to {parts - 1}/{parts}")
    prompt = open_prompt(recipe.prompt, recipe.student.llm)
    corpora = open_corpora(recipe.data)
    check_names(recipe, corpora, roles)  # a wrong name fails now, not after the answers were paid for
    wanted = [(role, corpus) for role in roles or recipe.train.roles for corpus in corpora if corpus.config.weight(role)]
    works = [Work(recipe, role, corpus, prompt, partition) for role, corpus in wanted]
    return [work.column(retry_failed, repair) for work in works]


@dataclass
class Work:
    """Makes the column of one teacher role on one corpus."""

    recipe: Recipe
    role: str
    corpus: Corpus
    prompt: Prompt
    partition: tuple[int, int]

    @cached_property
    def spec(self) -> ColumnSpec:
        return column_spec(self.role, self.config, self.recipe.prompt, self.prompt)

    @cached_property
    def config(self) -> TeacherConfig:
        return self.recipe.teachers[self.role]

    @cached_property
    def teacher(self) -> Teacher:
        return TEACHERS.get(self.config.backend)(self.config, self.prompt)

    @cached_property
    def writer(self) -> ColumnWriter:
        return ColumnWriter(self.corpus.shards, self.spec)

    def column(self, retry_failed: bool, repair: bool) -> Column | None:
        """The published column, or None while other partitions are at work."""
        found = self._published(repair)
        column = self._mended(found, repair) if found is not None else self._fill()
        if retry_failed and self.config.answers_from():
            say(f"teach: teacher `{self.role}` takes its answers from column {self.config.answers_from()}: nothing is asked again here")
        elif column is not None and retry_failed:
            self._reopen_failed(column)
            column = self._published() or self._fill()
        if column is not None and self.recipe.gates.active:
            result = measure_column(self.role, self.config, self.recipe.gates, self.corpus, column)
            say(f"teach: {column.name}: {result.line()}; the worst answers: {column.root / PAGE}")
        return column

    def _published(self, repair: bool = False) -> Column | None:
        """The column if it is published. With `repair`, a manifest that fails its own digest is removed: the column is published again."""
        if self.spec.name not in self.corpus.shards.column_names():
            return None
        try:
            return self.corpus.shards.column(self.spec.name)
        except DataError as damage:
            if not repair:
                raise
            say(f"teach: {damage}; the column is checked and published again")
            remove(self.corpus.shards.root / "columns" / self.spec.name / MANIFEST)
            return None

    def _mended(self, column: Column, deep: bool) -> Column | None:
        """The column after its damaged shards were made again. Without `deep`, only sizes are looked at, and not behind a URL."""
        if not deep and not isinstance(column.root, Path):
            return column
        damaged = dict(column.files.problems(sizes_only=not deep))
        if not damaged:
            return column
        for name, problem in damaged.items():
            if "in" in column.files.entries[name]:
                raise InputError(
                    f"column {column.name}, {name}: {problem}: repair the column of that version first, with `speechkd teach --repair` "
                    "and a recipe whose card names it"
                )
            say(f"teach: column {column.name}, {name}: {problem}; it is made again")
        if SPEC in damaged:
            write_json(column.root / SPEC, column.spec.model_dump(mode="json"))
        shards = sorted({int(Path(name).stem) for name in damaged if Path(name).stem.isdigit()})
        if not self.config.answers_from():
            for shard in shards:
                self._salvage(column, shard)
        self.writer.withdraw(shards)
        again = self._fill()
        if again is not None:
            same = "as it was" if again.digest == column.digest else "with other answers or signals: runs begun on it are refused"
            say(f"teach: column {column.name} is whole again, {same}")
        return again

    def _salvage(self, column: Column, shard: int) -> None:
        """Journal the answers that a damaged shard still holds whole, so that only the lost ones are asked again."""
        whole = {}
        with suppress(DataError):  # of the shard's own index: then nothing of it can be found
            first, end = column.rows.starts[shard : shard + 2].tolist()
            for row in range(first, end):
                key = column.key_of(row)
                with suppress(DataError):
                    turn = column.read(row)
                    whole[key, turn.turn] = Answer(turn.text, turn.tokens, turn.prompt_tokens, turn.stop, turn.reason)
        asked = [(key, (request.key, request.turn)) for request, key in self.asked(shard)]
        self._journal(shard).commit([(key, whole[turn]) for key, turn in asked if turn in whole])

    def _fill(self) -> Column | None:
        part, parts = self.partition
        to_do = [shard for shard in self.writer.missing() if shard % parts == part]
        total = self.corpus.shards.shards
        for shard in progress(self._claimable(to_do), f"teach {self.role}", total=total, start=total - len(to_do)):
            answered = self._answers_of_column(shard) if self.config.answers_from() else self._answered(shard)
            self.writer.write_shard(shard, _turns(answered), self._signals(answered))
        left = self.writer.missing()
        if left:
            say(f"teach: column {self.spec.name} still lacks {len(left)} shards; the partition that writes the last one publishes")
            return None
        column = self.writer.publish()
        totals = column.manifest["totals"]
        say(f"teach: corpus `{self.corpus.card.name}`: column {column.name} is published: {totals['examples']} answers")
        if totals["stop_error"] or totals["stop_length"]:
            failed = f"{totals['stop_error']} failed and {totals['stop_length']} cut answers of {totals['examples']}"
            again = f"training leaves them out, `speechkd teach --retry-failed` asks again; mostly: {_commonest_reason(column)}"
            say(f"teach: column {column.name} has {failed}; {again}")
        return column

    def _claimable(self, shards: list[int]) -> Iterator[int]:
        """The shards still to do, each locked: first those that no other process holds, then the others as they come free."""
        for wait in (False, True):
            busy = []
            for shard in shards:
                with claimed(self.writer.local / "answers" / f"{shard_name(shard)}.lock", wait) as mine:
                    if not mine:
                        busy.append(shard)
                    elif not self.writer.done(shard):
                        yield shard
            shards = busy

    def _answered(self, shard: int) -> list[tuple[Request, Answer]]:
        """The requests of a shard with the teacher's answers."""
        asked = self.asked(shard)
        answers = answer_all(self.teacher, [request for request, _ in asked], [key for _, key in asked], self._journal(shard))
        return [(request, answer) for (request, _), answer in zip(asked, answers, strict=True)]

    def _answers_of_column(self, shard: int) -> list[tuple[Request, Answer]]:
        """The requests of a shard that the column named by `responses` answers, with those answers.

        Raises InputError for a column of other tokens or another template, and for an answer to another question.
        """
        column = self.corpus.shards.column(self.config.answers_from())
        if changed := [word for word in ("tokenizer", "prompt") if getattr(column.spec, word) != getattr(self.spec, word)]:
            raise InputError(
                f"column `{column.name}` has another {changed[0]} than the recipe: name a column made with it "
                f"(teachers.{self.role}.responses)"
            )
        first, end = column.rows.starts[shard : shard + 2].tolist()
        stored = {(column.key_of(row), turn.turn): turn for row in range(first, end) for turn in [column.read(row)]}
        out = []
        for request, _ in self.asked(shard):
            turn = stored.get((request.key, request.turn))
            if turn is not None and turn.question != request.question:
                difference = f"`{request.key}`, turn `{request.turn}`: {turn.question[:60]!r}, not {request.question[:60]!r}"
                raise InputError(
                    f"column `{column.name}` answers another question: name a column of the same questions "
                    f"(teachers.{self.role}.responses; {difference})"
                )
            if turn is not None:
                out.append((request, Answer(turn.text, turn.tokens, turn.prompt_tokens, turn.stop, turn.reason)))
        return out

    def asked(self, shard: int) -> list[tuple[Request, str]]:
        """The requests of a shard, the same at every attempt, each with the key of its answer."""
        fields = self.config.metadata_fields()
        tasks = self.config.selected_tasks(self.corpus.card.tasks)
        spec_digest, config = self.spec.digest, self.recipe.prompt
        out = []
        for sample in self.corpus.shards.samples(shard=shard):
            clip = Clip(round(sample.seconds * SAMPLE_RATE), partial(self._hear, sample.row)) if sample.seconds > 0 else None
            for asked in requests(config, tasks, sample.key, sample.metadata, self._span_column_text(sample.row), audio=clip is not None):
                request = replace(asked, clip=clip)
                if self.teacher.accepts(request):
                    out.append((request, answer_key(spec_digest, sample.digest, request, audio_span_text(request, fields))))
        return out

    @cached_property
    def _span_text(self) -> ColumnText:
        return ColumnText(self.corpus, self.recipe.prompt.span.column, "prompt.span.column")

    def _span_column_text(self, row: int) -> str | None:
        """The text that the prompt's span takes from a column for a clip, where the recipe names one."""
        return self._span_text.get(row) if self.recipe.prompt.span.reads == "column" else None

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.corpus.shards)

    def _hear(self, row: int) -> np.ndarray:
        samples_T = self._reader.audio(row)
        assert samples_T is not None, "only samples with seconds have a clip"
        return samples_T

    def _signals(self, answered: Sequence[tuple[Request, Answer]]) -> TurnSignals:
        """The signals stored beside the responses. Every attempt scores them again: a forward pass is cheaper than a journal of them."""
        if not self.spec.signals.names:
            return {}
        teacher = self.teacher
        assert isinstance(teacher, Scoring), "the recipe lets only backends that score declare signals"
        scored = teacher.score([request for request, _ in answered], [answer for _, answer in answered])
        return {(request.key, request.turn): tensors for (request, _), tensors in zip(answered, scored, strict=True) if tensors}

    def _journal(self, shard: int) -> AnswerJournal:
        return AnswerJournal(self.writer.local / "answers" / f"{shard_name(shard)}.jsonl")

    def _reopen_failed(self, column: Column) -> None:
        """Reopen this partition's shards that have failed or cut answers: journal their whole answers, and withdraw the shards."""
        part, parts = self.partition
        failed = [entry["shard"] for entry in column.manifest["shards"] if entry["stop_error"] + entry["stop_length"]]
        failed = [shard for shard in failed if shard % parts == part]
        if not failed:
            return
        stored = {}
        shards = column.table["shard"].to_pylist()
        for row in (row for row, shard in enumerate(shards) if shard in set(failed)):
            turn = column.read(row)
            stored[column.key_of(row), turn.turn] = Answer(turn.text, turn.tokens, turn.prompt_tokens, turn.stop, turn.reason)
        for shard in failed:
            asked = self.asked(shard)
            journal = self._journal(shard)
            journal.commit([(key, stored[request.key, request.turn]) for request, key in asked])
            journal.forget_failed([key for _, key in asked])
        self.writer.withdraw(failed)
        say(f"teach: column {column.name}: asking again for what failed or was cut in {len(failed)} shards")


def _commonest_reason(column: Column) -> str:
    """Why most of a column's failed and cut answers are of no use, judged from at most `REASONS_READ`; numbers in a reason do not count."""
    bad = [row for row, stop in enumerate(column.read_index(["stop"])["stop"].to_pylist()) if stop != FINISHED]
    reasons = [column.read(row).reason or "cut by the limit" for row in bad[:: max(1, len(bad) // REASONS_READ)]]
    [(shape, _)] = Counter(re.sub(r"\d+", "0", reason) for reason in reasons).most_common(1)
    return next(reason for reason in reasons if re.sub(r"\d+", "0", reason) == shape)


def _turns(answered: Sequence[tuple[Request, Answer]]) -> dict[str, list[Turn]]:
    """Answers by sample key, as a column stores them."""
    turns: dict[str, list[Turn]] = {}
    for request, answer in answered:
        turn = Turn(request.turn, request.question, answer.text, answer.tokens, answer.prompt_tokens, answer.stop, answer.reason)
        turns.setdefault(request.key, []).append(turn)
    return turns
