"""Stops a stage whose every call fails for the same reason: a wrong setting costs a few calls then, not all of them."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import closing

from speechkd.core.errors import InputError
from speechkd.teachers.base import Answer

ENOUGH = 16
"""Failures alike, with no answer among them, after which nothing more is asked"""
Batches = Generator[list[tuple[int, Answer]], None, None]
_WAYS_OUT = (
    ("max_completion_tokens", "set `limit_key: max_completion_tokens`"),
    ("context length", "lower `max_new_tokens`, read fewer `fields`, or start the server with a longer context"),
    ("thinking", "the latter is `extra: {chat_template_kwargs: {enable_thinking: false}}` for most models"),
    ("finish_reason is null", "ask a server, or a newer version of it, that says so"),
    ("tool_calls", "set `extra: {tool_choice: none}`"),
    ("content_filter", "ask a model without the filter, or other `fields`"),
    ("no text has", "mend the server's tokenizer or template"),
    ("spells", "set `extra: {skip_special_tokens: true}`, or mend the server's chat template"),
    ("413", "read fewer or shorter `fields`, or raise the gateway's limit on a request's size"),
    ("quota", "raise the quota"),
)


class Alike:
    """Looks through answers until one is good. Failures before that are held back: they are stored only when an answer shows that they
    belong to their rows."""

    def __init__(self, where: str) -> None:
        """`where` names the server in messages."""
        self._where, self._proven, self._reasons = where, False, list[str]()

    def checked(self, batches: Batches, begun: bool) -> Batches:
        """The same answers. `begun`: some of these requests were answered earlier.

        Raises InputError where `ENOUGH` calls, or all of them if there are at least two, fail for one reason.
        """
        held: list[tuple[int, Answer]] = []
        self._proven |= begun
        with closing(batches):  # its calls in flight end before an error goes on
            for batch in batches:
                held += batch
                self._reasons += [] if self._proven else [_failure(answer) for _, answer in batch]
                if not self._proven and len(self._reasons) >= ENOUGH:
                    self._refuse_if_alike()
                self._proven |= "" in self._reasons or len(self._reasons) >= ENOUGH
                if self._proven:
                    yield held
                    held = []
        if held:
            if len(self._reasons) > 1:
                self._refuse_if_alike()
            yield held

    def _refuse_if_alike(self) -> None:
        shapes = {re.sub(r"\d+", "0", reason) for reason in self._reasons}
        if len(shapes) == 1 and "" not in shapes:
            reason, count = self._reasons[0], len(self._reasons)
            out = next((f"; {way}" for sign, way in _WAYS_OUT if sign in reason), "")
            raise InputError(f"all {count} calls failed alike, so no more are made: {reason}{out} ({self._where})")


def _failure(answer: Answer) -> str:
    """Why an answer is of no use; "" for one that can be trained on, and for one that is merely cut."""
    return answer.reason if answer.stop == "error" or (answer.stop == "length" and not answer.text) else ""
