"""The one place of the next-token shift: the logits at position s predict the token at position s + 1.

A response token at position s is therefore learnt at s - 1; the first one at the last position of the prompt, and nothing at the
last response token. Rows may be padded on either side; only where the response stands matters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechkd.core.errors import InputError


def predicting_index(starts_B: Tensor, lengths_B: Tensor, seq_len: int) -> Tensor:
    """Flat indices into [B * S] of the positions that predict each row's response tokens, [T], rows in order; T = sum of lengths.

    Made from CPU integers by the collator, so the device is never asked how many there are; `hidden_BSD.reshape(-1, D)[index_T]`.

    Args:
        starts_B: position of the first response token; the value is ignored where the length is 0.
        lengths_B: number of response tokens, 0 for a row without any.
        seq_len: S, padded length.
    Raises:
        InputError: a response at position 0, which nothing predicts, or past the end of its row.
    """
    starts_B, lengths_B = starts_B.long(), lengths_B.long()
    live_B = lengths_B > 0
    if bool(((lengths_B < 0) | (live_B & ((starts_B < 1) | (starts_B + lengths_B > seq_len)))).any()):
        raise InputError(f"a response must lie in positions 1 to {seq_len - 1}: starts {starts_B.tolist()}, lengths {lengths_B.tolist()}")
    first_B = torch.arange(len(starts_B)) * seq_len + starts_B - 1
    before_B = lengths_B.cumsum(0) - lengths_B
    return torch.arange(int(lengths_B.sum())) + torch.repeat_interleave(first_B - before_B, lengths_B)


def predicted_tokens(tokens_BS: Tensor, index_T: Tensor) -> Tensor:
    """The token that each flat position of `predicting_index` predicts, [T]."""
    return tokens_BS.reshape(-1)[index_T + 1]


def response_positions(response_mask_BS: Tensor) -> tuple[Tensor, Tensor]:
    """(row_T, pos_T) of the positions that predict the tokens of a boolean mask, in row-major order.

    The number of them depends on values, so on a GPU this waits for the device: use `predicting_index` in a training step.
    Raises InputError if the mask holds position 0, which nothing predicts.
    """
    if response_mask_BS.dtype != torch.bool or response_mask_BS.dim() != 2:
        raise InputError(f"response_mask_BS must be boolean [B, S], is {response_mask_BS.dtype} {list(response_mask_BS.shape)}")
    if bool(response_mask_BS[:, :1].any()):
        raise InputError("a response token at position 0 has no position that predicts it")
    row_T, pos_T = response_mask_BS.nonzero(as_tuple=True)
    return row_T, pos_T - 1
