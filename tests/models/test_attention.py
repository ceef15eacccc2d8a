"""`student.attention`: what is picked for an architecture on a device, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speechkd.core.errors import InputError
from speechkd.models.attention import Attention, pick_attention
from tests.contracts.tiny import llm

GPU, CPU = torch.device("cuda"), torch.device("cpu")


def gemma2() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1}
    with torch.device("meta"):
        return Gemma2ForCausalLM(Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=1, head_dim=8))


def test_the_best_that_architecture_and_device_allow() -> None:
    assert pick_attention(llm(), "auto", CPU).name == pick_attention(llm(), "auto", GPU).name == "sdpa"
    capped = gemma2()
    assert pick_attention(capped, "auto", CPU).name == "eager"
    fused = pick_attention(capped, "auto", GPU)
    assert fused.name == "flex_attention" and "soft-capped" in fused.why


@pytest.mark.parametrize("wanted, words", [("sdpa", "has no `sdpa`.*allowed: auto, "), ("flash_attention_2", "needs a GPU")])
def test_what_cannot_run_is_refused(wanted: Attention, words: str) -> None:
    with pytest.raises(InputError, match=words):
        pick_attention(gemma2(), wanted, CPU)
    assert pick_attention(llm(), "eager", CPU).name == "eager"
