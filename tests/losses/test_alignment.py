"""Input and output alignment: hand-computed distances, the right end, and wrong shapes."""

from __future__ import annotations

import pytest
import torch

from speechkd.core.errors import InputError
from speechkd.losses.input_alignment import input_alignment
from speechkd.losses.output_alignment import output_alignment


def test_by_hand() -> None:
    """Three positions, two tokens: positions 2 and 3 meet tokens 1 and 2; distances 5 and 1, their mean 3."""
    audio = torch.tensor([[[9.0, 9.0], [3.0, 4.0], [1.0, 0.0], [7.0, 7.0]]])
    text = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    audio_mask, text_mask = torch.tensor([[True, True, True, False]]), torch.ones(1, 2, dtype=torch.bool)
    out = input_alignment(audio, audio_mask, text, text_mask)
    assert (out.total, out.count) == (3.0, 1.0)


def test_a_transcript_longer_than_the_audio() -> None:
    audio, text = torch.zeros(1, 1, 2), torch.tensor([[[8.0, 0.0], [0.0, 2.0]]])
    masks = torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)
    assert input_alignment(audio, masks[0], text, masks[1], "truncate") == (2.0, 1.0)
    assert input_alignment(audio, masks[0], text, masks[1], "drop") == (0.0, 0.0)


def test_output_is_not_squared() -> None:
    out = output_alignment(torch.tensor([[3.0, 4.0], [1.0, 1.0]]), torch.zeros(2, 2), torch.tensor([True, False]))
    assert out == (5.0, 1.0)


def test_wrong_input_is_refused() -> None:
    audio, text = torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)
    masks = torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(InputError, match="agree in B"):
        input_alignment(audio, masks[1], text, masks[0])
    with pytest.raises(InputError, match="width 4 cannot be compared with embeddings of width 3"):
        input_alignment(audio, masks[0], text[..., :3], masks[1])
    with pytest.raises(InputError, match="did you mean `truncate`"):
        input_alignment(audio, masks[0], text, masks[1], "truncat")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="widths 4 and 3 differ"):
        output_alignment(audio[:, 0], audio[:, 0, :3], masks[0][:, 0])
