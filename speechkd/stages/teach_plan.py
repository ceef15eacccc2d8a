"""`speechkd teach --dry-run`: what each teacher would be asked, and what is answered already.

Asks no server, loads no model, writes nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from speechkd.data.column_writer import finished_shards
from speechkd.data.storage.cache import working_folder
from speechkd.data.storage.manifest import shard_name
from speechkd.recipe import Recipe
from speechkd.stages.inputs.corpora import open_corpora
from speechkd.stages.inputs.names import check_names
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.teach import Work
from speechkd.teachers.answers import FINISHED, AnswerJournal
from speechkd.teachers.base import Answer, Request, TeacherConfig
from speechkd.teachers.prompts import audio_span_text, has_audio

TOKENIZED = 400
"""Most prompts of a column whose tokens are counted"""


@dataclass(frozen=True, slots=True)
class TeachPlan:
    """What one teacher role would be asked about one corpus. Counts are of turns; a turn is one question about one clip."""

    role: str
    corpus: str
    column: str
    shards: int
    shards_to_do: list[int]
    to_do: int
    """turns without an answer: these are asked"""
    done: int
    """turns with a whole answer, in finished shards or in the journal of the others"""
    failed: int
    """turns whose answer failed or was cut: asked again only with `--retry-failed`"""
    longest_prompt: int
    """tokens of the longest of at most `TOKENIZED` prompts to do, without audio; 0 if none is"""
    max_new_tokens: int | None

    def lines(self) -> list[str]:
        """Summary in two lines."""
        room = f" and at most {self.max_new_tokens} of the answer" if self.max_new_tokens is not None else ""
        prompt = f"; longest prompt {self.longest_prompt:,} tokens{room}" if self.longest_prompt else ""
        return [
            f"teach       {self.role} on {self.corpus}: {self.to_do:,} turns to do, {self.done:,} done, {self.failed:,} failed{prompt}",
            f"            column {self.column}: {len(self.shards_to_do)} of {self.shards} shards to do",
        ]


def plan_teaching(recipe: Recipe, partition: tuple[int, int] = (0, 1), as_json: bool = False) -> int:
    """Print what `teach` with the same arguments would ask; 0.

    Raises InputError for what would stop it before its first question: missing shards, a name that the data does not have.
    """
    prompt = open_prompt(recipe.prompt, recipe.student.llm)
    corpora = open_corpora(recipe.data)
    check_names(recipe, corpora)
    works = [_Planned(recipe, role, c, prompt, partition) for role in recipe.train.roles for c in corpora if c.config.weight(role)]
    plans = [work.plan() for work in works]
    print(json.dumps({"teachers": [asdict(plan) for plan in plans]}, indent=1) if as_json else "\n".join(_lines(plans)))
    return 0


def _lines(plans: Sequence[TeachPlan]) -> list[str]:
    return [line for plan in plans for line in plan.lines()]


@dataclass(frozen=True)
class _Unloaded:
    """Stands for a teacher whose model is not loaded."""

    config: TeacherConfig

    def accepts(self, request: Request) -> bool:
        """As the backends': labels need a label, teachers that hear need a clip and a turn with audio."""
        if self.config.backend == "label":
            return request.label is not None
        return not self.config.positions_per_s() or (request.clip is not None and has_audio(request.turn))

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Never."""
        raise AssertionError("a dry run asks nothing")


class _Planned(Work):
    """A column that is looked at, not made."""

    @cached_property
    def teacher(self) -> Any:
        return _Unloaded(self.config)

    def plan(self) -> TeachPlan:
        """Count what this partition would ask."""
        part, parts = self.partition
        mine = [shard for shard in range(self.corpus.shards.shards) if shard % parts == part]
        finished = finished_shards(self.corpus.shards, self.spec)
        folder = working_folder(self.corpus.shards.root / "columns" / self.spec.name) / "answers"
        counts: Counter[str] = Counter()
        open_requests: list[Request] = []
        for shard in mine:
            if shard in finished:
                bad = finished[shard]["stop_error"] + finished[shard]["stop_length"]
                counts.update(done=finished[shard]["examples"] - bad, failed=bad)
                continue
            answers = AnswerJournal(folder / f"{shard_name(shard)}.jsonl").read()
            for request, key in self.asked(shard):
                if key not in answers:
                    open_requests.append(request)
                counts["to do" if key not in answers else "done" if answers[key].stop == FINISHED else "failed"] += 1
        to_do = [shard for shard in mine if shard not in finished]
        longest = 0 if self.config.backend == "label" else max(map(self._tokens, _spread(open_requests)), default=0)
        return TeachPlan(
            self.role, self.corpus.card.name, self.spec.name, self.corpus.shards.shards, to_do,
            counts["to do"], counts["done"], counts["failed"], longest, self.config.answer_limit(),
        )  # fmt: skip

    def _tokens(self, request: Request) -> int:
        return len(self.prompt.teacher(request.question, audio_span_text(request, self.config.metadata_fields())))


def _spread(requests: Sequence[Request]) -> Sequence[Request]:
    return requests[:: max(1, -(-len(requests) // TOKENIZED))]
