"""The one place of the next-token shift: the logits at position s predict the token at position s + 1.

A response token at position s is therefore learnt at s - 1; the first one at the last position of the prompt, and nothing at the
last response token. Positions are flat indices into [B * S] that the collator makes on the CPU, so a step never waits for a mask.
"""

from __future__ import annotations

from torch import Tensor


def predicting_positions(response_T: Tensor) -> Tensor:
    """Flat positions [T] that predict the response tokens standing at the flat positions `response_T`.

    No response may start at position 0 of its row, which nothing predicts; the collator's rows begin with a prompt.
    """
    return response_T - 1


def predicted_tokens(tokens_BS: Tensor, index_T: Tensor) -> Tensor:
    """The token that each flat position of `predicting_positions` predicts, [T]."""
    return tokens_BS.reshape(-1)[index_T + 1]
