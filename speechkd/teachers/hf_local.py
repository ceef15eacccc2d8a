"""Backend `hf_local`: a transformers LLM reads metadata in place of audio (wong26a section 3.1), answers greedily, scores given answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from speechkd.core.errors import InputError
from speechkd.models.exported import load_tokenizer
from speechkd.models.greedy import generate_greedily, say_unused
from speechkd.models.model_folder import fingerprint, positions_of, text_config
from speechkd.models.pretrained import load_causal_lm
from speechkd.models.prompt import Prompt
from speechkd.teachers.base import Answer, Request, ScoringConfig, batches
from speechkd.teachers.prompts import audio_span_text

if TYPE_CHECKING:
    from torch import Tensor

    from speechkd.teachers.scoring import Scorer


class LocalConfig(ScoringConfig):
    """Configuration of a model in this process."""

    model: str
    max_new_tokens: int = Field(256, ge=1)
    batch_size: int = Field(64, ge=1)
    """largest number of rows in a batch"""
    batch_tokens: int = Field(1 << 18, ge=1)
    """largest number of positions in a batch, including padding and tokens still to be generated: bounds the key-value cache"""

    def answer_limit(self) -> int | None:
        """As the block says."""
        return self.max_new_tokens


class LoadedConfig(LocalConfig):
    """Configuration of a transformers model. `model`: a folder or a hub id."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device_map: str | None = None
    """"auto" spreads a model that is larger than one GPU; unset uses one device"""

    def fingerprint(self) -> str | None:
        """Digest of the model's folder."""
        return fingerprint(self.model)

    def output_width(self) -> int:
        """Width of the model's output, from its configuration alone."""
        width: int = text_config(self.model).vocab_size
        return width

    def state_width(self) -> int:
        """Width of the model's states, from its configuration alone."""
        width: int = text_config(self.model).hidden_size
        return width

    def state_depth(self) -> int:
        """Layers of the model, from its configuration alone."""
        depth: int = text_config(self.model).num_hidden_layers
        return depth


class ReaderConfig(LoadedConfig):
    """`fields`: metadata fields that the teacher reads, in this order; a clip's missing fields are skipped."""

    fields: list[str]

    def metadata_fields(self) -> list[str]:
        """As the block says."""
        return self.fields


class HfLocalConfig(ReaderConfig):
    """Any causal LM with the student's tokenizer."""

    backend: Literal["hf_local"] = "hf_local"


def positions_for(model: Any, name: str, shortest: int) -> int:
    """Positions of a loaded model. Raises InputError where its shortest prompt, of `shortest` positions, leaves none for an answer."""
    limit = positions_of(model.config.get_text_config())
    if limit is not None and shortest >= limit:
        raise InputError(f"`{name}` has {limit:,} positions, the prompt template alone needs {shortest:,}: shorten it (prompt.template)")
    return sys.maxsize if limit is None else limit


def too_long(prompt: int, positions: int) -> Answer:
    """What becomes of a request whose prompt leaves no position for an answer."""
    return Answer("", [], prompt, "error", f"the prompt needs {prompt} positions, the teacher has {positions}")


def refuse_unscorable(requests: Sequence[Request], answers: Sequence[Answer], lengths: Sequence[int], positions: int, model: str) -> None:
    """Raises InputError for an answer that ends beyond the model's positions: signals of it would mean nothing."""
    for request, answer, length in zip(requests, answers, lengths, strict=True):
        if length > positions and answer.stop == "eos":
            raise InputError(
                f"`{model}` has {positions:,} positions, prompt and answer of `{request.key}`, turn `{request.turn}`, need {length:,}: "
                "shorten the answers in their column, or score with a model of longer context (teachers: model)"
            )


class HfLocalTeacher:
    """Batched greedy decoding and scoring. Batches depend on the given requests (a shard) alone: same shard, same batches, same bytes."""

    Config: type[ReaderConfig] = HfLocalConfig
    SIGNALS = frozenset({"response", "topk", "sampled", "hidden"})

    def __init__(self, config: ReaderConfig, prompt: Prompt) -> None:
        """Raises InputError for a model that cannot be loaded, or whose tokenizer is not the student's."""
        import torch

        self.config, self.prompt = config, prompt
        if load_tokenizer(config.model).get_vocab() != prompt.tokenizer.get_vocab():
            raise InputError(
                f"teacher `{config.model}` has another tokenizer than the student: name a model of the same family, or "
                "ask it through a server, backend openai_http (teachers: model)"
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = getattr(torch, config.dtype)
        model = load_causal_lm(config.model, dtype, config.device_map)
        self.model: Any = model if config.device_map is not None else model.to(device)
        say_unused(self.model, config.model)
        self._positions = positions_for(self.model, config.model, len(prompt.teacher("", "")))

    def accepts(self, request: Request) -> bool:
        """Always: an LLM can answer any request."""
        return True

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all requests greedily, in request order."""
        prompts = self._prompts(requests)
        answers = {i: too_long(len(prompt), self._positions) for i, prompt in enumerate(prompts) if len(prompt) >= self._positions}
        # Sorted by turn, then prompt length: rows of a batch end at about the same token, so little is decoded past the end.
        fitting = [i for i in range(len(requests)) if i not in answers]
        order = sorted(fitting, key=lambda i: (requests[i].turn, len(prompts[i]), requests[i].key))
        for batch in self._batches(order, [len(prompt) + self.config.max_new_tokens for prompt in prompts]):
            for index, tokens in zip(batch, self._generate([prompts[i] for i in batch]), strict=True):
                stop, tokens = self.prompt.end_of_turn, tokens[: self._positions - len(prompts[index])]
                ended = stop in tokens
                kept = tokens[: tokens.index(stop) + 1] if ended else tokens
                answers[index] = Answer(self.prompt.decode(kept), kept, len(prompts[index]), "eos" if ended else "length")
        return [answers[i] for i in range(len(requests))]

    def score(self, requests: Sequence[Request], answers: Sequence[Answer]) -> list[Mapping[str, Tensor]]:
        """Teacher-force the given answers, each after its prompt. Lengths are known, so batches sorted by length need little padding."""
        from speechkd.teachers.scoring import ScoredResponse

        prompts = self._prompts(requests)
        lengths = [len(prompt) + len(answer.tokens) for prompt, answer in zip(prompts, answers, strict=True)]
        refuse_unscorable(requests, answers, lengths, self._positions, self.config.model)
        whole = [i for i, answer in enumerate(answers) if answer.stop != "error" and answer.tokens]
        order = sorted(whole, key=lambda i: (lengths[i], requests[i].key, requests[i].turn))
        out: list[Mapping[str, Tensor]] = [{} for _ in requests]
        for batch in self._batches(order, lengths):
            forced = [ScoredResponse(prompts[i], answers[i].tokens, f"{requests[i].key}.{requests[i].turn}") for i in batch]
            for index, signals in zip(batch, self._scorer.score(forced), strict=True):
                out[index] = signals
        return out

    @cached_property
    def _scorer(self) -> Scorer:
        from speechkd.teachers.scoring import Scorer

        return Scorer(self.model, self.config.signals)

    def _prompts(self, requests: Sequence[Request]) -> list[list[int]]:
        return [self.prompt.teacher(r.question, audio_span_text(r, self.config.fields)) for r in requests]

    def _batches(self, order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
        return batches(order, lengths, self.config.batch_size, self.config.batch_tokens)

    def _generate(self, prompts: list[list[int]]) -> list[list[int]]:
        import torch

        longest, stop = max(map(len, prompts)), self.prompt.end_of_turn
        ids_BS = torch.full((len(prompts), longest), stop)
        mask_BS = torch.zeros_like(ids_BS)
        for row, prompt in enumerate(prompts):
            ids_BS[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask_BS[row, longest - len(prompt) :] = 1
        with torch.inference_mode():
            inputs = {"input_ids": ids_BS.to(self.model.device), "attention_mask": mask_BS.to(self.model.device)}
            out_BS = generate_greedily(self.model, inputs, self.config.max_new_tokens, stop)
        tokens: list[list[int]] = out_BS[:, longest:].tolist()
        return tokens
