"""Backend `vllm`: vLLM's offline engine in this process (`pip install 'speechkd[vllm]'`). Same answers as `hf_local`, faster, no server.

Untested against a real engine: vLLM needs a GPU and pins another torch than this project's lock, so it needs its own environment. Inputs
(`TokensPrompt`, `SamplingParams`) and outputs (`RequestOutput`) follow its documentation for 0.11; the tests use a stand-in engine of that
form. Try it on a GPU before you trust it with a corpus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from speechkd.core.errors import InputError
from speechkd.data.columns.signals import SignalsConfig
from speechkd.models.exported import load_tokenizer
from speechkd.models.model_folder import local_folder
from speechkd.models.prompt import Prompt
from speechkd.teachers.base import Answer, Request, require_temperature_one
from speechkd.teachers.hf_local import ReaderConfig
from speechkd.teachers.openai_reply import BadReply, read_top_k
from speechkd.teachers.prompts import audio_span_text

if TYPE_CHECKING:
    from torch import Tensor


class VllmConfig(ReaderConfig):
    """As for `hf_local`, but the engine makes its own batches: `batch_size` is the number of sequences it runs at once."""

    OPERATIONAL: ClassVar[frozenset[str]] = frozenset({"tensor_parallel", "memory", "max_model_len"})

    backend: Literal["vllm"] = "vllm"
    tensor_parallel: int = Field(1, ge=1)
    """number of GPUs that share the model"""
    memory: float = Field(0.9, gt=0, le=1)
    """share of each GPU's memory that the engine takes"""
    max_model_len: int | None = Field(None, ge=1)
    """longest prompt plus answer, in tokens; null: the model's own limit"""
    device_map: None = None
    signals: SignalsConfig = SignalsConfig()
    """only `topk` (from the engine's `prompt_logprobs`)"""

    @field_validator("signals")
    @classmethod
    def _as_given(cls, signals: SignalsConfig) -> SignalsConfig:
        return require_temperature_one(signals, "the engine's")


class VllmTeacher:
    """Greedy answers, and top-k log-probs of given answers."""

    Config = VllmConfig
    SIGNALS = frozenset({"response", "topk"})

    def __init__(self, config: VllmConfig, prompt: Prompt) -> None:
        """Raises InputError if vLLM is not installed, the model cannot be found, or its tokenizer is not the student's."""
        try:
            import vllm
        except ImportError:
            raise InputError("backend `vllm` needs the package of that name: pip install 'speechkd[vllm]' (teachers: backend)") from None
        self.config, self.prompt, self._vllm = config, prompt, vllm
        if load_tokenizer(config.model).get_vocab() != prompt.tokenizer.get_vocab():
            raise InputError(
                f"teacher `{config.model}` has another tokenizer than the student: name a model of the same family, or "
                "ask it through a server, backend openai_http (teachers: model)"
            )
        top = config.signals.topk
        self._engine: Any = vllm.LLM(
            model=str(local_folder(config.model)),
            dtype=config.dtype,
            tensor_parallel_size=config.tensor_parallel,
            gpu_memory_utilization=config.memory,
            max_model_len=config.max_model_len,
            max_num_seqs=config.batch_size,
            max_logprobs=top.k if top is not None else 0,
            trust_remote_code=False,
            generation_config="vllm",  # the engine's own defaults: nothing of the model's generation_config.json
            seed=0,
        )

    def accepts(self, request: Request) -> bool:
        """Always: an LLM can answer any request."""
        return True

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all requests greedily, in request order."""
        prompts = [self._prompt(request) for request in requests]
        stop = self.prompt.end_of_turn
        limit = self.config.max_new_tokens
        sampling = self._vllm.SamplingParams(temperature=0.0, max_tokens=limit, stop_token_ids=[stop], detokenize=False)
        answers = []
        for prompt, output in zip(prompts, self._run(prompts, sampling), strict=True):
            tokens = list(output.outputs[0].token_ids)
            kept = tokens[: tokens.index(stop)] if stop in tokens else tokens
            ended = output.outputs[0].finish_reason == "stop"  # the engine may leave the stop token out of its answer
            answers.append(Answer(self.prompt.decode(kept), [*kept, stop] if ended else kept, len(prompt), "eos" if ended else "length"))
        return answers

    def score(self, requests: Sequence[Request], answers: Sequence[Answer]) -> list[Mapping[str, Tensor]]:
        """Top-k of given answers, from the engine's log-probs of prompt and answer. Raises InputError if it cannot score one."""
        import torch

        from speechkd.data.columns.signals import encode_topk

        store = self.config.signals.topk
        assert store is not None, "only called where signals are declared"
        vocabulary = max(len(self.prompt.tokenizer), self.config.output_width())
        whole = [i for i, answer in enumerate(answers) if answer.stop != "error" and answer.tokens]
        prompts = {i: self._prompt(requests[i]) for i in whole}
        sampling = self._vllm.SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=store.k, detokenize=False)
        out: list[Mapping[str, Tensor]] = [{} for _ in requests]
        for i, output in zip(whole, self._run([[*prompts[i], *answers[i].tokens] for i in whole], sampling), strict=True):
            try:
                found = read_top_k(_as_served(output.prompt_logprobs), len(prompts[i]), answers[i].tokens, store.k, vocabulary)
            except BadReply as problem:
                raise InputError(f"the engine cannot score the answer to `{requests[i].key}`: {problem} (teachers: signals)") from None
            ids_TK, logp_TK, tail_T = (torch.from_numpy(array) for array in found)
            out[i] = {"topk": encode_topk(store, ids_TK, logp_TK, tail_T, vocabulary)}
        return out

    def _run(self, prompts: Sequence[list[int]], sampling: Any) -> list[Any]:
        """One output per prompt, in order."""
        outputs: list[Any] = self._engine.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        return outputs

    def _prompt(self, request: Request) -> list[int]:
        return self.prompt.teacher(request.question, audio_span_text(request, self.config.fields))


def _as_served(positions: Any) -> dict[str, Any]:
    """The engine's objects in the JSON form that vLLM's server sends."""
    entries = [entry and {str(token): {"logprob": one.logprob} for token, one in entry.items()} for entry in positions or ()]
    return {"choices": [{"prompt_logprobs": entries}]}
