"""A stand-in for the package `vllm`, which needs a GPU: the documented classes that the backend uses, on a real LLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from speechkd.models.pretrained import load_causal_lm


@dataclass
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int = 16
    stop_token_ids: Sequence[int] = ()
    prompt_logprobs: int | None = None
    detokenize: bool = True


class LLM:
    """Greedy; the stop token is part of `token_ids`, as in vLLM, whose text alone leaves it out."""

    def __init__(
        self,
        model: str,
        *,
        dtype: str,
        tensor_parallel_size: int,
        gpu_memory_utilization: float,
        max_model_len: int | None,
        max_num_seqs: int,
        max_logprobs: int,
        trust_remote_code: bool,
        generation_config: str,
        seed: int,
    ) -> None:
        assert not trust_remote_code and generation_config == "vllm"
        self.model: Any = load_causal_lm(model, getattr(torch, dtype))
        self.max_logprobs = max_logprobs

    @torch.no_grad()
    def generate(self, prompts: Sequence[dict[str, list[int]]], sampling_params: SamplingParams, use_tqdm: bool = True) -> list[Any]:
        assert sampling_params.temperature == 0.0 and (sampling_params.prompt_logprobs or 0) <= self.max_logprobs
        return [self._one(prompt["prompt_token_ids"], sampling_params) for prompt in prompts]

    def _one(self, ids: list[int], how: SamplingParams) -> Any:
        stop = list(how.stop_token_ids) or [-1]
        made = self.model.generate(
            torch.tensor([ids]), max_new_tokens=how.max_tokens, do_sample=False, eos_token_id=stop, pad_token_id=0, num_beams=1
        )
        tokens = made[0, len(ids) :].tolist()
        scores = None if how.prompt_logprobs is None else self._scores(ids, how.prompt_logprobs)
        reason = "stop" if tokens[-1] in stop else "length"
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(tokens), finish_reason=reason)], prompt_logprobs=scores)

    def _scores(self, ids: list[int], k: int) -> list[Any]:
        logp_SV = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        out: list[Any] = [None]
        for row, token in enumerate(ids[1:]):
            best = logp_SV[row].topk(k).indices.tolist()
            out.append({i: SimpleNamespace(logprob=float(logp_SV[row, i]), rank=1, decoded_token=None) for i in [*best, token]})
        return out


def package() -> ModuleType:
    """What `import vllm` gives."""
    module = ModuleType("vllm")
    module.__dict__.update(LLM=LLM, SamplingParams=SamplingParams)
    return module
