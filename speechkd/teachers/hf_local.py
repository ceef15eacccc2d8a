"""A transformers LLM in this process: reads metadata in the audio span and answers greedily (wong26a section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import Field

from speechkd.core.errors import InputError
from speechkd.models.pretrained import load_causal_lm
from speechkd.models.prompt import Prompt
from speechkd.teachers.base import Answer, Request, TeacherConfig
from speechkd.teachers.prompts import reading


class HfLocalConfig(TeacherConfig):
    """`model`: a folder or a hub id. `fields`: the metadata that the teacher reads (in this order; absent ones are skipped)."""

    backend: Literal["hf_local"] = "hf_local"
    model: str
    fields: list[str]
    max_new_tokens: int = Field(256, ge=1)
    batch_size: int = Field(64, ge=1)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device_map: str | None = None
    """"auto" spreads a model that is larger than one GPU; unset uses one device"""


class HfLocalTeacher:
    """Batched greedy decoding. Batches are length-sorted within the requests given (one shard): same shard, same batches, same bytes."""

    Config = HfLocalConfig
    SIGNALS = frozenset({"response"})

    def __init__(self, config: HfLocalConfig, prompt: Prompt) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.config, self.prompt = config, prompt
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = getattr(torch, config.dtype)
        if config.device_map is None:
            self.model: Any = load_causal_lm(config.model, dtype).to(device)
        elif find_spec("accelerate") is None:
            raise InputError("`device_map` spreads a model by the package `accelerate`, which is not installed (teachers: device_map)")
        else:
            self.model = AutoModelForCausalLM.from_pretrained(config.model, dtype=dtype, device_map=config.device_map).eval()

    def accepts(self, request: Request) -> bool:
        """Every request: an LLM always answers."""
        return True

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all requests greedily, in request order."""
        prompts = [self.prompt.teacher(r.question, reading(r, self.config.fields)) for r in requests]
        # By turn, then by prompt length: rows of a batch end at about the same token, so little is decoded past the end.
        order = sorted(range(len(requests)), key=lambda i: (requests[i].turn, len(prompts[i]), requests[i].key))
        answers: dict[int, Answer] = {}
        for start in range(0, len(order), self.config.batch_size):
            batch = order[start : start + self.config.batch_size]
            for index, tokens in zip(batch, self._generate([prompts[i] for i in batch]), strict=True):
                stop = self.prompt.end_of_turn
                ended = stop in tokens
                kept = tokens[: tokens.index(stop) + 1] if ended else tokens
                answers[index] = Answer(self.prompt.decode(kept), kept, len(prompts[index]), "eos" if ended else "length")
        return [answers[i] for i in range(len(requests))]

    def _generate(self, prompts: list[list[int]]) -> list[list[int]]:
        import torch

        longest, stop = max(map(len, prompts)), self.prompt.end_of_turn
        ids_BS = torch.full((len(prompts), longest), stop)
        mask_BS = torch.zeros_like(ids_BS)
        for row, prompt in enumerate(prompts):
            ids_BS[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask_BS[row, longest - len(prompt) :] = 1
        with torch.inference_mode():
            out_BS = self.model.generate(
                input_ids=ids_BS.to(self.model.device),
                attention_mask=mask_BS.to(self.model.device),
                max_new_tokens=self.config.max_new_tokens,
                do_sample=False,
                num_beams=1,
                eos_token_id=stop,
                pad_token_id=stop,
            )
        tokens: list[list[int]] = out_BS[:, longest:].tolist()
        return tokens
