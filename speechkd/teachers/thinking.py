"""Parts a model's thinking from its answer. Only the answer is stored and trained on; the thinking is kept in the journal."""

from __future__ import annotations

import re
from typing import NamedTuple

from speechkd.teachers.reasoning import TraceError, parse_trace

PAIRS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
"""Begin and end of thinking: Qwen, DeepSeek, GLM; Claude; Gemini; Magistral; Seed; Sky; Command A; Kimi; gpt-oss"""


class Spoken(NamedTuple):
    """A model's text in its two parts."""

    answer: str
    thinking: str


def part_thinking(text: str, pairs: tuple[tuple[str, str], ...] = PAIRS) -> Spoken:
    """Everything up to the last end of thinking is thinking, also where the prompt held its begin; a begin without end leaves no answer.

    A reasoning trace that the prompt asked for is an answer, whatever stands around its stages.
    """
    try:
        parse_trace(text)
        return Spoken(text, "")
    except TraceError:
        pass
    for begin, end in pairs:
        folded, low = text.casefold(), (begin.casefold(), end.casefold())
        if len(folded) != len(text):  # a few letters fold to two, which would shift positions
            folded, low = text, (begin, end)
        spot = folded.rfind(low[1])
        if spot >= 0:
            thinking, text = text[:spot], text[spot + len(end) :]
            return Spoken(text.strip(), re.sub(f"^\\s*{re.escape(begin)}", "", thinking, flags=re.IGNORECASE).strip())
        if folded.lstrip().startswith(low[0]):
            return Spoken("", text.lstrip()[len(begin) :].strip())
    return Spoken(text, "")
