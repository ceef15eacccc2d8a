"""The next-token shift, against a causal model that can be read by eye."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkd.core.errors import InputError
from speechkd.losses.positions import predicted_tokens, predicting_index, response_positions


def test_no_one_token_slip() -> None:
    # prompt 10 11, response 12 13, padding 0; left-padded prompt 21, response 22 23 24
    tokens = torch.tensor([[10, 11, 12, 13, 0], [0, 21, 22, 23, 24]])
    index = predicting_index(torch.tensor([2, 2]), torch.tensor([2, 3]), 5)
    assert tokens.reshape(-1)[index].tolist() == [11, 12, 21, 22, 23]  # the last prompt token predicts; the last response token does not
    assert predicted_tokens(tokens, index).tolist() == [12, 13, 22, 23, 24]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), min_size=0, max_size=5))
def test_index_and_mask_agree(seq_len: int, spans: list[tuple[int, int]]) -> None:
    spans = [(min(start, seq_len - 1), min(length, seq_len - min(start, seq_len - 1))) for start, length in spans]
    mask = torch.zeros(len(spans), seq_len, dtype=torch.bool)
    for b, (start, length) in enumerate(spans):
        mask[b, start : start + length] = True
    starts, lengths = (torch.tensor([span[i] for span in spans], dtype=torch.long) for i in (0, 1))
    row, pos = response_positions(mask)
    assert predicting_index(starts, lengths, seq_len).tolist() == (row * seq_len + pos).tolist()


def test_empty() -> None:
    assert predicting_index(torch.tensor([0, 0]), torch.tensor([0, 0]), 4).shape == (0,)
    assert predicting_index(torch.tensor([0, 0]), torch.tensor([0, 0]), 4).dtype == torch.int64
    assert response_positions(torch.zeros(2, 4, dtype=torch.bool))[0].shape == (0,)


@pytest.mark.parametrize("start,length", [(0, 1), (2, 3), (1, -1)])
def test_responses_that_nothing_predicts_or_that_do_not_fit_are_refused(start: int, length: int) -> None:
    with pytest.raises(InputError, match="positions 1 to 3"):
        predicting_index(torch.tensor([start]), torch.tensor([length]), 4)


def test_mask_at_the_first_position_is_refused() -> None:
    with pytest.raises(InputError, match="position 0"):
        response_positions(torch.tensor([[True, True]]))
