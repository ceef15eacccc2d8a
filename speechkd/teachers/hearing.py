"""Teachers that hear: the clip is given inline, the answer is greedy, and known answers are scored behind the clip.

An `AudioModel` is a speech LLM of transformers (`hf_audio`) or an exported student (`snapshot`). The question stands in the recipe's
template and the model's own chat template; audio positions stand where another teacher reads metadata and where the student hears.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.models.encoder import SAMPLE_RATE
from speechkd.models.prompt import Prompt, StudentPrompt, disagreement
from speechkd.teachers.base import Answer, Clip, Request, batches
from speechkd.teachers.hf_local import LocalConfig
from speechkd.teachers.prompts import hears
from speechkd.teachers.scoring import ScoredResponse, Scorer, embedded


class AudioModel(Protocol):
    """A model that hears."""

    lm: Any
    """of transformers: `generate`, embeddings, head"""
    prompt: Prompt
    """the recipe's template in the model's own tokenizer"""
    window: int
    """samples of the longest clip that it hears whole"""

    def around(self, question: str) -> StudentPrompt:
        """Ids around the audio positions."""

    def positions(self, samples: int) -> int:
        """Audio positions Q of a clip."""

    def hear(self, clips: Sequence[np.ndarray]) -> list[Tensor]:
        """[Q, E] of each clip: what the language model is given there."""

    def lora_scope(self, audio_BS: Tensor) -> AbstractContextManager[None]:
        """The state in which the language model reads a batch with audio at these positions."""


class HearingTeacher:
    """Batched greedy decoding and scoring; batches are a function of the requests given (a shard). Answers turns that are heard."""

    SIGNALS = frozenset({"response", "topk", "sampled", "hidden", "attention"})

    def __init__(self, config: LocalConfig, prompt: Prompt, audio_model: AudioModel) -> None:
        """`prompt`: the student's. Raises InputError where the two tokenizers have one id for two tokens."""
        self.config, self.prompt, self.audio_model = config, prompt, audio_model
        own = audio_model.prompt.tokenizer
        number = disagreement(prompt.tokenizer, own)
        if number is not None:
            mine, other = (tokenizer.convert_ids_to_tokens(number) for tokenizer in (prompt.tokenizer, own))
            raise InputError(
                f"teacher `{config.model}` has `{other}` at id {number}, the student has `{mine}`: its answers cannot be stored"
            )
        if audio_model.prompt.end_of_turn != prompt.end_of_turn:
            raise InputError(f"teacher `{config.model}` ends a turn with another token than the student (teachers: model)")
        self._known = frozenset(prompt.tokenizer.get_vocab().values())

    def accepts(self, request: Request) -> bool:
        """Turns that the student hears, of clips that there are."""
        return request.clip is not None and hears(request.turn)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all requests greedily, in request order."""
        answers: dict[int, Answer] = {}
        lengths = [self._length(request) + self.config.max_new_tokens for request in requests]
        for index, request in enumerate(requests):
            if _clip(request).samples > self.audio_model.window:
                heard = (
                    f"the clip has {_clip(request).samples / SAMPLE_RATE:.1f} s, "
                    f"this teacher hears {self.audio_model.window / SAMPLE_RATE:.1f} s"
                )
                answers[index] = Answer("", [], 0, "error", heard)
        order = sorted(set(range(len(requests))) - answers.keys(), key=lambda i: (requests[i].turn, lengths[i], requests[i].key))
        for batch in batches(order, lengths, self.config.batch_size, self.config.batch_tokens):
            forced = self._forced([requests[i] for i in batch], [[]] * len(batch))
            for index, item, tokens in zip(batch, forced, self._generate(forced), strict=True):
                answers[index] = self._answer(tokens, len(item.prompt))
        return [answers[i] for i in range(len(requests))]

    def _answer(self, tokens: list[int], prompt_tokens: int) -> Answer:
        stop = self.prompt.end_of_turn
        ended = stop in tokens
        kept = tokens[: tokens.index(stop) + 1] if ended else tokens
        if strange := [token for token in kept if token not in self._known]:
            said = self.audio_model.prompt.tokenizer.convert_ids_to_tokens(strange[0])
            return Answer("", [], prompt_tokens, "error", f"the answer has a token that the student lacks: {said}")
        return Answer(self.prompt.decode(kept), kept, prompt_tokens, "eos" if ended else "length")

    def score(self, requests: Sequence[Request], answers: Sequence[Answer]) -> list[Mapping[str, Tensor]]:
        """Teacher-force the answers behind their clips.

        Raises InputError where an answer's tokens, at their span of the teacher's input, are other text to the teacher than to the student.
        """
        lengths = [self._length(request) + len(answer.tokens) for request, answer in zip(requests, answers, strict=True)]
        whole = [i for i, answer in enumerate(answers) if answer.stop != "error" and answer.tokens]
        order = sorted(whole, key=lambda i: (lengths[i], requests[i].key, requests[i].turn))
        out: list[Mapping[str, Tensor]] = [{} for _ in requests]
        for batch in batches(order, lengths, self.config.batch_size, self.config.batch_tokens):
            forced = self._forced([requests[i] for i in batch], [answers[i].tokens for i in batch])
            for item in forced:
                self._check_span(item)
            for index, signals in zip(batch, self._scorer.score(forced), strict=True):
                out[index] = signals
        return out

    def _check_span(self, item: ScoredResponse) -> None:
        """The ids that the teacher is given must be the stored answer in its own eyes too."""
        own, student = (prompt.decode(item.response) for prompt in (self.audio_model.prompt, self.prompt))
        if own != student:
            raise InputError(
                f"the answer of `{item.name}` is `{student[:60]}` to the student and `{own[:60]}` to teacher `{self.config.model}`"
            )

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.audio_model.lm, self.config.signals, self.audio_model.lora_scope)

    def _length(self, request: Request) -> int:
        """Positions of a prompt, audio included."""
        around = self.audio_model.around(request.question)
        return len(around.before) + self.audio_model.positions(_clip(request).samples) + len(around.after)

    def _forced(self, requests: Sequence[Request], responses: Sequence[list[int]]) -> list[ScoredResponse]:
        with torch.inference_mode():
            heard = self.audio_model.hear([_clip(request).load() for request in requests])
        out = []
        for request, audio_QE, response in zip(requests, heard, responses, strict=True):
            around = self.audio_model.around(request.question)
            assert len(audio_QE) == self.audio_model.positions(_clip(request).samples), "as many audio positions as the clip's length says"
            prompt = [*around.before, *[0] * len(audio_QE), *around.after]
            out.append(ScoredResponse(prompt, response, f"{request.key}.{request.turn}", audio_QE, len(around.before)))
        return out

    @torch.inference_mode()
    def _generate(self, batch: Sequence[ScoredResponse]) -> list[list[int]]:
        longest, stop = max(len(item.prompt) for item in batch), self.prompt.end_of_turn
        ids_BS = torch.full((len(batch), longest), stop)
        mask_BS = torch.zeros_like(ids_BS)
        starts = [longest - len(item.prompt) for item in batch]
        for row, (item, start) in enumerate(zip(batch, starts, strict=True)):
            ids_BS[row, start:] = torch.tensor(item.prompt)
            mask_BS[row, start:] = 1
        lm = self.audio_model.lm
        embeds_BSE, audio_BS = embedded(lm, ids_BS.to(lm.device), batch, starts)
        with self.audio_model.lora_scope(audio_BS):
            out_BN = lm.generate(
                inputs_embeds=embeds_BSE,
                attention_mask=mask_BS.to(lm.device),
                max_new_tokens=self.config.max_new_tokens,
                do_sample=False,
                num_beams=1,
                eos_token_id=stop,
                pad_token_id=stop,
            )
        tokens: list[list[int]] = out_BN.tolist()
        return tokens


def _clip(request: Request) -> Clip:
    assert request.clip is not None, "only turns with a clip are accepted"
    return request.clip
