"""A student answers only where its language model has positions left for it."""

from __future__ import annotations

import numpy as np
import pytest

from speechkd.core.errors import InputError
from speechkd.models.exported import DistilledStudent
from speechkd.models.prompt import Reading


def test_a_question_that_fills_the_model_is_refused(distilled: DistilledStudent) -> None:
    clip, limit = np.zeros(16_000, np.float32), distilled.model_positions
    assert limit == 512
    for count in (1, 50, 200, 2000):
        question = " ".join(["Why?"] * count)
        needs = int(distilled.batch([clip], [question]).mask_BS.sum())
        if needs < limit:
            distilled.check_length(question, len(clip), "question")
            assert len(distilled.answer([clip], [question], max_new_tokens=2)) == 1
            continue
        for call in (
            lambda q=question: distilled.answer([clip], [q], 2),
            lambda q=question: distilled.check_length(q, len(clip), "question"),
        ):
            with pytest.raises(InputError, match=f"{needs:,} positions, the student's language model has 512: shorten"):
                call()
        with pytest.raises(InputError, match="has 512: shorten"):
            distilled.read([{"transcript": question}], ["What?"], Reading(form="text"), 2)


def test_no_answer_goes_beyond_the_models_positions(distilled: DistilledStudent) -> None:
    """An untrained projector makes the stand-in babble: what it says past its last position is cut off."""
    clip, question = np.zeros(16_000, np.float32), " ".join(["Why?"] * 100)
    needs = int(distilled.batch([clip], [question]).mask_BS.sum())
    room = 512 - needs
    assert 0 < room < 400
    [answer] = distilled.answer([clip], [question], max_new_tokens=room + 20)
    assert len(distilled.prompt.answer(answer, ended=False)) <= room
