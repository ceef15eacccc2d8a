"""Estimates what a teacher will cost before it runs: samples, turns (one question and its answer), tokens, bytes of each signal, hours."""

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
from speechkd.teachers.prompts import PromptConfig, audio_span_text, requests

T = TypeVar("T")

COUNTED = 20_000
"""Most samples whose turns are counted; a larger corpus is sampled evenly"""
TOKENIZED = 400
"""Most turns whose prompts are tokenized"""
RESPONSE_BYTES_PER_TOKEN, RESPONSE_BYTES_PER_TURN = 9, 287
"""Per token: an id of up to 6 digits, a comma, some letters (an estimate). Per turn: question, names and tar padding; fits the corpus
`minibabel`, where 32,254 turns of 5.2 tokens take 334 bytes on average"""


@dataclass(frozen=True, slots=True)
class Budget:
    """The cost of one teacher role on one corpus. Counts are estimates where the corpus is large."""

    role: str
    corpus: str
    samples: int
    turns: float
    prompt_tokens: float
    """of all turns"""
    response_tokens: float
    basis: str
    """where `response_tokens` comes from, and whether it is only a bound"""
    signals: Mapping[str, float]
    """signal -> bytes of all turns"""
    scored: bool
    """whether a forward pass over prompt and response makes signals"""
    answered: bool = True
    """whether the teacher generates answers; False where it only scores the answers of another column"""

    def hours(self, tokens_per_s: float) -> float:
        """Hours at `tokens_per_s`, read and generated tokens alike; a scoring pass reads everything once more."""
        tokens = self.prompt_tokens + self.response_tokens
        return tokens * (self.scored + self.answered) / tokens_per_s / 3600

    def lines(self, tokens_per_s: float) -> list[str]:
        """Summary in two lines."""
        per_turn = self.prompt_tokens / max(self.turns, 1)
        size = ", ".join(f"{name} {_size(value)}" for name, value in self.signals.items())
        passes = ("" if not self.scored else ", read twice: answered, then scored") if self.answered else ", scored only"
        return [
            f"teacher     {self.role} on {self.corpus}: {self.samples:,} samples, {round(self.turns):,} turns, "
            f"{round(self.prompt_tokens):,} prompt tokens ({per_turn:.0f} a turn), {round(self.response_tokens):,} response tokens "
            f"({self.basis})",
            f"            {size}; {self.hours(tokens_per_s):.2f} h at {tokens_per_s:,.0f} tokens/s{passes}",
        ]


def budgets(recipe: Recipe) -> list[Budget]:
    """The budget of every role of the regime on every corpus.

    Raises InputError where a corpus has neither shards nor raw data here, or the tokenizer cannot be loaded.
    """
    corpora = [_Samples.of(config, recipe.data.root) for config in recipe.data.corpora]
    prompt = open_prompt(recipe.prompt, recipe.student.llm)
    return [
        _budget(role, recipe.teachers[role], recipe.prompt, prompt, corpus)
        for config, corpus in zip(recipe.data.corpora, corpora, strict=True)
        for role in recipe.train.roles
        if config.weight(role)
    ]


@dataclass(frozen=True, slots=True)
class _Samples:
    """Keys and metadata of a corpus's samples, from its shards or, where there are none yet, from a listing of its raw data."""

    card: Card
    shards: ShardSet | None
    count: int
    sampled: Sequence[tuple[str, Metadata]]
    """(key, metadata) of at most `COUNTED` of its `count` samples, evenly spread"""

    @property
    def mean_seconds(self) -> float:
        """Mean length of a clip; before sharding, the longest that the card allows."""
        return self.card.audio.max_seconds if self.shards is None else self.shards.manifest["totals"]["seconds"] / max(self.count, 1)

    @classmethod
    def of(cls, config: CorpusConfig, root: str) -> _Samples:
        card = load_card(Path(config.card))
        folder = version_folder(root, card)
        if (folder / "manifest.json").is_file():
            shards = open_shards(folder)
            found = [(sample.key, sample.metadata) for sample in shards.samples()]
            return cls(card, shards, len(found), _spread(found, COUNTED))
        card_dir = Path(config.card).parent
        items = [(item.key, item.metadata) for item in list_items(card, open_source(card, card_dir), card_dir)]
        return cls(card, None, len(items), _spread(items, COUNTED))


def _budget(role: str, config: TeacherConfig, prompt_config: PromptConfig, prompt: Prompt, corpus: _Samples) -> Budget:
    scale = corpus.count / max(len(corpus.sampled), 1)  # only some of a large corpus is counted
    labels = config.backend == "label"
    counted = [
        request
        for key, metadata in corpus.sampled
        for request in requests(prompt_config, corpus.card.tasks, key, metadata)
        if request.label is not None or not labels
    ]
    turns = len(counted) * scale
    tokenized = _spread(counted, TOKENIZED)
    fields = config.metadata_fields()
    prompt_lengths = [0.0] if labels or not tokenized else [len(prompt.teacher(r.question, audio_span_text(r, fields))) for r in tokenized]
    audio_positions = config.positions_per_s() * corpus.mean_seconds
    prompt_tokens = turns * (fmean(prompt_lengths) + audio_positions)
    per_turn, basis = _response_tokens(role, config, corpus, prompt, tokenized)
    tokens = turns * per_turn
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
        signals["attention"] = turns * stored.attention.clip_bytes(audio_positions)
    scored, answered = bool(stored.names), not config.answers_from()
    return Budget(role, corpus.card.name, corpus.count, turns, prompt_tokens, tokens, basis, signals, scored, answered)


def _response_tokens(role: str, config: TeacherConfig, corpus: _Samples, prompt: Prompt, asked: Sequence[Request]) -> tuple[float, str]:
    """(mean response tokens a turn, what that rests on): a column of the same role, the labels themselves, or the limit."""
    for name in corpus.shards.column_names() if corpus.shards is not None else ():
        same_role = name == config.answers_from() if config.answers_from() else name.startswith(f"{role}-")
        if same_role and corpus.shards is not None:
            totals = corpus.shards.column(name).manifest["totals"]
            return totals["tokens"] / max(totals["examples"], 1), f"as many a turn as column {name} has"
    if config.backend == "label":
        return fmean([len(prompt.answer(request.label or "")) for request in asked] or [0.0]), "labels"
    limit = config.answer_limit()
    if limit is None:
        raise InputError(f"teacher `{role}` sets no limit on the length of its answers: its cost cannot be estimated")
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
