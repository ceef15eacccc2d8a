"""The four-stage reasoning trace of source- and layer-wise distillation (arXiv 2509.18579): how it is written, and how it is read back.

The paper trains on (audio, question, trace r, answer a) and forces teacher and student on (r, a); at inference the reasoning is dropped.
Names and order of the stages are those of the CoTA data as far as they are known (planning, caption, reasoning, summary: reconstructed);
the marks are ours to choose, and `shards/prompts/reasoning.j2` asks for them.
"""

from __future__ import annotations

from dataclasses import dataclass

STAGES = ("PLANNING", "CAPTION", "REASONING", "SUMMARY")
RESPONSE = "RESPONSE"


class TraceError(ValueError):
    """A text that is not one whole trace; says which mark is missing, doubled or out of order."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Four stages and the answer, none of them empty."""

    planning: str
    caption: str
    reasoning: str
    summary: str
    answer: str


def parse_trace(text: str) -> Trace:
    """Read a trace. Text outside the marks must be empty, but for a `<THINK>` pair around the stages. Raises TraceError."""
    upper = text.upper()
    if len(upper) != len(text):  # a few letters grow in upper case; positions would be off
        upper = "".join(sign.upper() if sign.isascii() else sign for sign in text)
    for mark in ("<THINK>", "</THINK>"):
        spot = upper.find(mark)
        if spot >= 0:
            text, upper = (part[:spot] + part[spot + len(mark) :] for part in (text, upper))
    parts, end = [], 0
    for name in (*STAGES, RESPONSE):
        opening, closing = f"<{name}>", f"</{name}>"
        if upper.count(opening) != 1 or upper.count(closing) != 1:
            raise TraceError(f"{opening} and {closing} must each occur once, occur {upper.count(opening)} and {upper.count(closing)} times")
        start, stop = upper.index(opening), upper.index(closing)
        if text[end:start].strip() or start < end or stop < start:
            raise TraceError(f"{opening} … {closing} is out of order, or text stands before it")
        inner = text[start + len(opening) : stop].strip()
        if not inner:
            raise TraceError(f"{opening} is empty")
        parts.append(inner)
        end = stop + len(closing)
    if text[end:].strip():
        raise TraceError(f"text stands after </{RESPONSE}>")
    return Trace(*parts)


def answer_of(text: str) -> str:
    """The answer of a trace; a text without `<RESPONSE>` is its own answer. For graders: the reasoning is dropped."""
    upper = text.upper()
    start = upper.rfind(f"<{RESPONSE}>")
    if start < 0 or len(upper) != len(text):
        return text.strip()
    stop = upper.find(f"</{RESPONSE}>", start)
    return text[start + len(RESPONSE) + 2 : stop if stop >= 0 else len(text)].strip()
