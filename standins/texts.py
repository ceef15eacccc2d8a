"""Pre-training data of the stand-ins: a card's source, and question-answer dialogues about metadata for the LLM."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechkd.core.config import build, read_extending
from speechkd.data.sources.base import Item
from speechkd.data.sources.espeak import EspeakConfig, EspeakSource

AUDIO_OPEN, AUDIO_CLOSE = "<AUDIO>", "</AUDIO>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DESCRIBE = (
    "Describe the audio.",
    "What do you hear?",
    "Describe the speaker and write down the words.",
    "Tell me about this recording.",
)
DESCRIPTION = "A {gender} voice speaks {language} at a {rate} rate: {transcript}."
FIELDS = ("language", "gender", "rate", "transcript")
EXTRA_FIELDS = ("words_per_minute", "pitch", "speaker", "style", "kind")
"""Fields that no question asks about; the LLM must learn to ignore them."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One user message and the answer to it; `task` names the question. `more`: later turns (question, answer) about the same audio."""

    task: str
    user: str
    answer: str
    more: tuple[tuple[str, str], ...] = ()


def load_source(card: Path) -> tuple[EspeakSource, Mapping[str, Any]]:
    """The card's source and its tasks."""
    data = read_extending(card)
    return EspeakSource(build(EspeakConfig, data["source"], str(card)), card.parent), data["tasks"]


def user_message(question: str, metadata: Mapping[str, Any]) -> str:
    """The teacher's prompt: the question, a line break, the metadata as flat JSON in the audio span."""
    return f"{question}\n{AUDIO_OPEN}{json.dumps(metadata, ensure_ascii=False)}{AUDIO_CLOSE}"


def questions(item: Item, tasks: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(task, instruction) of every question that applies to the item, the open ones included."""
    asked = [(name, str(task["instruction"])) for name, task in tasks.items() if applies(item, task)]
    return asked + [("describe", question) for question in DESCRIBE]


def applies(item: Item, task: Mapping[str, Any]) -> bool:
    """Whether the task's `when` holds for the item."""
    return all(item.metadata.get(key) == value for key, value in (task.get("when") or {}).items())


def answer(task: str, metadata: Mapping[str, Any], tasks: Mapping[str, Any]) -> str:
    """The correct answer to the task's question, from the metadata."""
    return DESCRIPTION.format(**metadata) if task == "describe" else str(metadata[tasks[task]["field"]])


def dialogue(item: Item, tasks: Mapping[str, Any], others: Sequence[Item], draw: random.Random, mixed: float, turns: int = 3) -> Dialogue:
    """One training dialogue about an item: random questions, fields in random order, and some extra fields.

    With probability `mixed` each attribute comes from another item, so that fields are independent and all must be read; with the same
    probability the words come from several items, so that they must be copied instead of memorised.
    """
    metadata = dict(item.metadata)
    if draw.random() < mixed:
        for name in FIELDS[:-1]:
            metadata[name] = draw.choice(others).metadata[name]
    if draw.random() < mixed:
        words = [draw.choice(str(draw.choice(others).metadata["transcript"]).split()) for _ in range(draw.randint(2, 6))]
        metadata["transcript"] = " ".join(words)
    wordings: dict[str, list[str]] = {}
    for task, text in questions(item, tasks):
        wordings.setdefault(task, []).append(text)
    asked = [(task, draw.choice(wordings[task])) for task in draw.sample(sorted(wordings), min(turns, len(wordings)))]
    shown = list(FIELDS) + draw.sample(EXTRA_FIELDS, draw.randint(0, 2))
    if draw.random() < 0.5:
        draw.shuffle(shown)
    (first, question), rest = asked[0], asked[1:]
    return Dialogue(
        first,
        user_message(question, {name: metadata[name] for name in shown}),
        answer(first, metadata, tasks),
        tuple((text, answer(task, metadata, tasks)) for task, text in rest),
    )
