"""Reads and writes four-stage reasoning traces (source- and layer-wise distillation, arXiv 2509.18579).

The paper trains on (audio, question, trace r, answer a), with teacher and student teacher-forced on (r, a); the reasoning is dropped at
inference. The stages follow the CoTA data (planning, caption, reasoning, summary: reconstructed). The tags are our choice;
`shards/prompts/reasoning.j2` asks for them.
"""

from __future__ import annotations

from dataclasses import dataclass

STAGES = ("PLANNING", "CAPTION", "REASONING", "SUMMARY")
RESPONSE = "RESPONSE"


class TraceError(ValueError):
    """The text is not one complete trace; the message names the tag that is missing, doubled or out of order."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The four stages and the answer, all non-empty."""

    planning: str
    caption: str
    reasoning: str
    summary: str
    answer: str


def parse_trace(text: str) -> Trace:
    """Parse a trace. No text may stand outside the tags; a `<THINK>` pair around the stages is allowed. Raises TraceError."""
    upper = text.upper()
    if len(upper) != len(text):  # a few letters become longer in upper case, which would shift positions
        upper = "".join(char.upper() if char.isascii() else char for char in text)
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
    """The answer without the reasoning, for graders; a text without `<RESPONSE>` is returned as it is."""
    upper = text.upper()
    start = upper.rfind(f"<{RESPONSE}>")
    if start < 0 or len(upper) != len(text):
        return text.strip()
    stop = upper.find(f"</{RESPONSE}>", start)
    return text[start + len(RESPONSE) + 2 : stop if stop >= 0 else len(text)].strip()
