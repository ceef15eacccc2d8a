"""What the teacher will cost, before it runs: samples, turns, tokens, bytes of each signal, hours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from speechkd.core.errors import InputError
from speechkd.core.types import Metadata
from speechkd.data.cards import Card, list_items, load_card, open_source
from speechkd.data.shards.index import ShardSet, open_shards
from speechkd.models.prompt import Prompt
from speechkd.recipe import CorpusConfig, Recipe
from speechkd.stages.inputs.corpora import version_folder
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.teachers.base import Request, TeacherConfig
from speechkd.teachers.prompts import audio_span_text, requests

T = TypeVar("T")

COUNTED = 20_000
"""Samples whose turns are counted; of a larger corpus, as many spread evenly over it"""
TOKENIZED = 400
"""Turns whose prompts are tokenized"""
RESPONSE_BYTES_PER_TOKEN, RESPONSE_BYTES_PER_TURN = 9, 287
"""Text and ids; question, names and tar padding. `minibabel` has 334 bytes a turn of 5.2 tokens (mean of 32,254 turns); the 9 is an
estimate: an id of up to 6 digits, a comma, some letters"""


@dataclass(frozen=True, slots=True)
class Budget:
    """One teacher role on one corpus. Counts are estimates where the corpus is large; `at_most` says that response tokens are a bound."""

    role: str
    corpus: str
    samples: int
    turns: float
    prompt_tokens: float
    """in all"""
    response_tokens: float
    basis: str
    """what `response_tokens` rests on"""
    signals: Mapping[str, float]
    """bytes in all, by signal"""
    scored: bool
    """a pass over prompt and response without generation"""
    answered: bool = True
    """whether the teacher answers: not where it only scores the answers of another column"""

    def hours(self, tokens_per_s: float) -> float:
        """At so many tokens a second, read and generated alike; a scoring pass reads everything once more."""
        tokens = self.prompt_tokens + self.response_tokens
        return tokens * (self.scored + self.answered) / tokens_per_s / 3600

    def lines(self, tokens_per_s: float) -> list[str]:
        """For people."""
        asked = self.prompt_tokens / max(self.turns, 1)
        size = ", ".join(f"{name} {_size(value)}" for name, value in self.signals.items())
        passes = ("" if not self.scored else ", read twice: answered, then scored") if self.answered else ", scored only"
        return [
            f"teacher     {self.role} on {self.corpus}: {self.samples:,} samples, {round(self.turns):,} turns, "
            f"{round(self.prompt_tokens):,} prompt tokens ({asked:.0f} a turn), {round(self.response_tokens):,} response tokens "
            f"({self.basis})",
            f"            {size}; {self.hours(tokens_per_s):.2f} h at {tokens_per_s:,.0f} tokens/s{passes}",
        ]


def budgets(recipe: Recipe) -> list[Budget]:
    """The budget of every role of the regime on every corpus.

    Raises InputError where a corpus is neither sharded nor there as raw data, or the tokenizer cannot be had.
    """
    corpora = [_Samples.of(recipe, config) for config in recipe.data.corpora]
    prompt = open_prompt(recipe)
    pairs = zip(recipe.data.corpora, corpora, strict=True)
    return [_budget(recipe, role, corpus, prompt) for config, corpus in pairs for role in recipe.train.roles if config.weight(role)]


@dataclass(frozen=True, slots=True)
class _Samples:
    """Keys and metadata of a corpus, from its shards or, where there are none yet, from its raw data's listing."""

    card: Card
    shards: ShardSet | None
    count: int
    some: Sequence[tuple[str, Metadata]]

    @property
    def mean_seconds(self) -> float:
        """Of a clip; where nothing is sharded yet, as long as the card lets one be."""
        return self.card.audio.max_seconds if self.shards is None else self.shards.manifest["totals"]["seconds"] / max(self.count, 1)

    @classmethod
    def of(cls, recipe: Recipe, config: CorpusConfig) -> _Samples:
        card = load_card(Path(config.card))
        folder = version_folder(recipe, card)
        if (folder / "manifest.json").is_file():
            shards = open_shards(folder)
            found = [(sample.key, sample.metadata) for sample in shards.samples()]
            return cls(card, shards, len(found), _spread(found, COUNTED))
        card_dir = Path(config.card).parent
        items = [(item.key, item.metadata) for item in list_items(card, open_source(card, card_dir), card_dir)]
        return cls(card, None, len(items), _spread(items, COUNTED))


def _budget(recipe: Recipe, role: str, corpus: _Samples, prompt: Prompt) -> Budget:
    config = recipe.teachers[role]
    every = corpus.count / max(len(corpus.some), 1)
    labels = config.backend == "label"  # type: ignore[attr-defined]
    asked = [
        request
        for key, metadata in corpus.some
        for request in requests(recipe.prompt, corpus.card.tasks, key, metadata)
        if request.label is not None or not labels
    ]
    turns = len(asked) * every
    sample = _spread(asked, TOKENIZED)
    fields: list[str] = getattr(config, "fields", [])
    prompts = fmean([0.0] if labels or not sample else [len(prompt.teacher(r.question, audio_span_text(r, fields))) for r in sample])
    heard = config.positions_per_s() * corpus.mean_seconds
    prompts += heard
    mean, basis = _response(role, config, corpus, prompt, sample)
    tokens = turns * mean
    stored = config.signals_config()
    signals: dict[str, float] = {"response": tokens * RESPONSE_BYTES_PER_TOKEN + turns * RESPONSE_BYTES_PER_TURN}
    vocabulary = max(len(prompt.tokenizer), config.output_width())
    if stored.topk is not None:
        signals["topk"] = tokens * stored.topk.row_bytes(vocabulary)
    if stored.sampled is not None:
        signals["sampled (at most)"] = tokens * stored.sampled.row_bytes(vocabulary, stored.sampled.draws)
    if stored.hidden is not None:
        signals["hidden"] = tokens * stored.hidden.row_bytes(config.state_width())
    if stored.attention is not None:
        signals["attention"] = turns * stored.attention.clip_bytes(heard)
    scored, answered = bool(stored.names), not config.answers_from()
    return Budget(role, corpus.card.name, corpus.count, turns, turns * prompts, tokens, basis, signals, scored, answered)


def _response(role: str, config: TeacherConfig, corpus: _Samples, prompt: Prompt, asked: Sequence[Request]) -> tuple[float, str]:
    """Mean response tokens a turn, and what is known of them: a column of the same role, the labels themselves, or the limit."""
    for name in corpus.shards.column_names() if corpus.shards is not None else ():
        ours = name == config.answers_from() if config.answers_from() else name.startswith(f"{role}-")
        if ours and corpus.shards is not None:
            totals = corpus.shards.column(name).manifest["totals"]
            return totals["tokens"] / max(totals["examples"], 1), f"as many a turn as column {name} has"
    if config.backend == "label":  # type: ignore[attr-defined]
        return fmean([len(prompt.answer(request.label or "")) for request in asked] or [0.0]), "labels"
    limit = getattr(config, "max_new_tokens", None)
    if limit is None:
        raise InputError(f"teacher `{role}` does not say how long its answers may be: no budget can be made")
    return float(limit), f"at most: max_new_tokens {limit} a turn"


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of `items`, evenly spread."""
    step = max(1, -(-len(items) // count))
    return list(items[::step])


def _size(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"
