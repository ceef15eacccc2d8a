"""Parts that folders of other engines share: a tokenizer with more tokens, rows for them, settings of generation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechkd.models.exported import DistilledStudent


def tokenizer_with(student: DistilledStudent, tokens: Sequence[str]) -> Any:
    """A copy of the student's tokenizer that has special tokens more, where it lacks them."""
    from tokenizers import AddedToken

    tokenizer: Any = copy.deepcopy(student.prompt.tokenizer)
    lacking = [token for token in tokens if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in lacking], special_tokens=True)
    return tokenizer


def language_model_tensors(student: DistilledStudent, rows: int) -> dict[str, Tensor]:
    """The language model's tensors by its own names, with an `lm_head.weight` of its own and at least `rows` rows in both vocabularies.

    A new row is a copy of the last: tokens that only stand for a clip are never likelier than one that the model knows.
    """
    lm = student.student.llm.lm
    tensors: dict[str, Tensor] = {name: tensor.detach() for name, tensor in lm.state_dict().items()}
    embeddings, head = lm.get_input_embeddings().weight, lm.get_output_embeddings().weight
    name = next(name for name, tensor in tensors.items() if tensor.data_ptr() == embeddings.data_ptr() and name != "lm_head.weight")
    tensors[name], tensors["lm_head.weight"] = _grown(embeddings, rows), _grown(head, rows).clone()
    return tensors


def _grown(weight_VD: Tensor, rows: int) -> Tensor:
    more = max(0, rows - weight_VD.shape[0])
    return torch.cat([weight_VD.detach(), weight_VD[-1:].detach().expand(more, -1)])


def text_config(student: DistilledStudent, rows: int) -> dict[str, Any]:
    """The language model's configuration, for tensors of `language_model_tensors`."""
    config: Any = student.student.llm.lm.config
    return config.to_dict() | {"vocab_size": max(rows, config.vocab_size), "tie_word_embeddings": False}


def save_generation_config(student: DistilledStudent, folder: Path, never: Sequence[int]) -> None:
    """Greedy answers that end with the student's own end of turn and hold none of the tokens `never`."""
    from transformers import GenerationConfig

    tokenizer = student.prompt.tokenizer
    stop = student.prompt.end_of_turn
    pad = stop if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    GenerationConfig(do_sample=False, eos_token_id=stop, pad_token_id=pad, suppress_tokens=sorted(never)).save_pretrained(folder)
