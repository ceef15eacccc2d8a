"""From a recipe to batches: columns opened and checked against the student, the plan of all phases, and the loader of one micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Lock

from speechkd.core.errors import InputError
from speechkd.core.seeds import derive
from speechkd.core.types import Batch
from speechkd.data.plan import ExampleRef, Plan, PlanSource
from speechkd.data.reader import Reader
from speechkd.models.collate import Collator, Row
from speechkd.models.prompt import Prompt, StudentPrompt, tokenizer_digest
from speechkd.recipe import Recipe
from speechkd.stages.inputs import Corpus, column_spec, open_corpora
from speechkd.train.schedule import Schedule, Segment


@dataclass(frozen=True, slots=True)
class Supply:
    """One (teacher role, corpus): what a plan's source number stands for."""

    role: str
    corpus: Corpus
    reader: Reader
    source: PlanSource
    """the training split's finished answers; a truncated one would teach not to stop"""


def open_supplies(recipe: Recipe, prompt: Prompt) -> list[Supply]:
    """The columns of the chosen regime. Raises InputError where one is missing or bound to another tokenizer."""
    supplies = []
    corpora = open_corpora(recipe)
    for role in recipe.train.roles:
        spec = column_spec(recipe, role, prompt)
        for corpus in corpora:
            if not corpus.config.weight(role):
                continue
            if spec.name not in corpus.shards.column_names():
                raise InputError(
                    f"corpus `{corpus.card.name}` lacks column `{spec.name}` of teacher `{role}`: run `speechkd teach` on this recipe"
                )
            column = corpus.shards.column(spec.name)
            if column.spec.tokenizer != tokenizer_digest(prompt.tokenizer):
                raise InputError(f"column `{spec.name}` was made with another tokenizer than the student's (`{recipe.student.llm}`)")
            reader = Reader(corpus.shards, column)
            supplies.append(Supply(role, corpus, reader, reader.source(role, corpus.config.train_split, stops=("eos",))))
    return supplies


def make_schedule(recipe: Recipe, supplies: Sequence[Supply]) -> Schedule:
    """The phases' plans over the supplies of their roles: passes of the phase times the weight of the corpus."""
    segments = []
    for number, phase in enumerate(recipe.train.phases):
        passes = [phase.mix.get(supply.role, 0) * supply.corpus.config.weight(supply.role) for supply in supplies]
        used = [i for i, count in enumerate(passes) if count > 0]
        sources = [replace(supplies[i].source, passes=passes[i]) for i in used]
        plan = Plan(recipe.plan, sources, derive(recipe.seed, "plan", number, phase.name))
        segments.append(Segment(phase, plan, used))
    return Schedule(segments)


def make_loader(supplies: Sequence[Supply], prompt: Prompt, collator: Collator) -> Callable[[Sequence[ExampleRef]], Batch]:
    """A function from one micro-batch of the plan to a collated batch, for any number of threads. Questions repeat: their ids are kept."""
    asked: dict[str, StudentPrompt] = {}
    asking = Lock()  # a tokenizer serves one thread at a time

    def load(refs: Sequence[ExampleRef]) -> Batch:
        rows = []
        for ref in refs:
            example = supplies[ref.source].reader.read(ref.row)
            with asking:
                if example.question not in asked:
                    asked[example.question] = prompt.student(example.question)
                around = asked[example.question]
            rows.append(Row(around.before, around.after, example.tokens, example.samples_T))
        return collator(rows)

    return load
