"""Greedy decoding by an explicit configuration: nothing of a model's own `generation_config.json` changes an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from speechkd.core.log import say

_NOT_OF_DECODING = ("_", "transformers_version", "use_cache", "output_", "return_dict", "bos_token_id", "eos_token_id", "pad_token_id")


def generate_greedily(
    lm: Any, inputs: Mapping[str, Tensor], max_new_tokens: int, stop: int, ends: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Continuations [B, N] of left-padded rows, after the ids of their prompts if `inputs` has these.

    `inputs`: `input_ids` or `inputs_embeds`, and `attention_mask`. A row ends at `stop`, which also fills it up. `ends` sees the ids
    [B, N] after each token and says which rows end here, bool [B].
    """
    from transformers import GenerationConfig, StoppingCriteriaList

    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=stop, pad_token_id=stop, use_cache=True
    )
    own = lm.generation_config
    lm.generation_config = GenerationConfig()  # `generate` takes from the model's own what the given configuration leaves open
    try:
        rule = StoppingCriteriaList([] if ends is None else [lambda ids_BN, scores, **_: ends(ids_BN)])
        out: Tensor = lm.generate(generation_config=config, stopping_criteria=rule, **inputs)
    finally:
        lm.generation_config = own
    return out


def say_unused(lm: Any, model: str) -> None:
    """One line where a model's own file asks for another decoding than greedy (sampling, penalties, suppressed or forced tokens)."""
    own = {name: value for name, value in lm.generation_config.to_diff_dict().items() if not name.startswith(_NOT_OF_DECODING)}
    if own:
        asked = ", ".join(f"{name}: {str(value)[:40]}" for name, value in sorted(own.items()))
        say(f"teach: generation_config.json of `{model}` is not used, answers are greedy ({asked})")
