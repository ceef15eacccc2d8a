"""No one-token slip: the first response token is learnt at the prompt's last position, and nothing at the response's last token."""

from __future__ import annotations

import torch

from speechkd.losses.positions import predicted_tokens, predicting_positions


def test_each_response_token_is_predicted_one_position_earlier() -> None:
    tokens_BS = torch.tensor([[11, 12, 21, 22, 0], [13, 23, 24, 25, 0]])  # prompts 1x, responses 2x
    response_T = torch.tensor([2, 3, 5 + 1, 5 + 2, 5 + 3])
    index_T = predicting_positions(response_T)
    assert index_T.tolist() == [1, 2, 5, 6, 7]
    assert predicted_tokens(tokens_BS, index_T).tolist() == [21, 22, 23, 24, 25]
