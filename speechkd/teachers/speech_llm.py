"""Speech-LLM teachers: they get the clip itself, answer greedily, and score given answers.

An `AudioModel` is a speech LLM of transformers (`hf_audio`) or an exported student (`snapshot`). The prompt is the recipe's template inside
the model's own chat template. The audio positions take the place of the metadata that a text teacher reads.
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
from speechkd.models.greedy import generate_greedily, say_unused
from speechkd.models.prompt import Prompt, StudentPrompt, conflicting_id
from speechkd.teachers.base import Answer, Clip, Request, batches
from speechkd.teachers.hf_local import LocalConfig, positions_for, refuse_unscorable, too_long
from speechkd.teachers.prompts import has_audio
from speechkd.teachers.scoring import ScoredResponse, Scorer, embedded


class AudioModel(Protocol):
    """A language model with an audio front end, as `SpeechLlmTeacher` uses it."""

    lm: Any
    """transformers' language model: `generate`, embeddings, head"""
    prompt: Prompt
    """the recipe's template in the model's own tokenizer"""
    max_samples: int
    """longest clip that it hears in full, in samples at 16 kHz"""

    def prompt_for(self, question: str) -> StudentPrompt:
        """Token ids before and after the audio positions."""

    def positions(self, samples: int) -> int:
        """Number Q of audio positions of a clip of `samples` samples."""

    def encode_audio(self, clips: Sequence[np.ndarray]) -> list[Tensor]:
        """Embeddings [Q, E] of each clip, which the language model gets at the audio positions."""

    def lora_scope(self, audio_BS: Tensor) -> AbstractContextManager[None]:
        """Context that switches LoRA for a forward pass whose audio positions are `audio_BS` (boolean [B, S])."""


class SpeechLlmTeacher:
    """Batched greedy decoding and scoring. Batches depend on the given requests (a shard) alone. Answers only turns with audio."""

    SIGNALS = frozenset({"response", "topk", "sampled", "hidden", "attention"})

    def __init__(self, config: LocalConfig, prompt: Prompt, audio_model: AudioModel) -> None:
        """`prompt`: the student's. Raises InputError where an id means different tokens to student and teacher."""
        self.config, self.prompt, self.audio_model = config, prompt, audio_model
        teacher_tokenizer = audio_model.prompt.tokenizer
        number = conflicting_id(prompt.tokenizer, teacher_tokenizer)
        if number is not None:
            student_token, teacher_token = (t.convert_ids_to_tokens(number) for t in (prompt.tokenizer, teacher_tokenizer))
            raise InputError(
                f"teacher `{config.model}` has `{teacher_token}` at id {number}, the student has `{student_token}`: "
                "its answers cannot be stored; name a model of the student's family (teachers: model)"
            )
        if audio_model.prompt.end_of_turn != prompt.end_of_turn:
            raise InputError(
                f"teacher `{config.model}` ends a turn with another token than the student: name a model of the "
                "student's family (teachers: model)"
            )
        say_unused(audio_model.lm, config.model)
        shortest = audio_model.prompt_for("")
        self._positions = positions_for(audio_model.lm, config.model, len(shortest.before) + len(shortest.after))
        self._student_ids = frozenset(prompt.tokenizer.get_vocab().values())

    def accepts(self, request: Request) -> bool:
        """Turns in which the student hears a clip, if the request has that clip."""
        return request.clip is not None and has_audio(request.turn)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all requests greedily, in request order."""
        answers: dict[int, Answer] = {}
        lengths = [self._length(request) + self.config.max_new_tokens for request in requests]
        for index, request in enumerate(requests):
            if _clip(request).samples > self.audio_model.max_samples:
                reason = (
                    f"the clip has {_clip(request).samples / SAMPLE_RATE:.1f} s, "
                    f"this teacher hears {self.audio_model.max_samples / SAMPLE_RATE:.1f} s"
                )
                answers[index] = Answer("", [], 0, "error", reason)
            elif (needs := lengths[index] - self.config.max_new_tokens) >= self._positions:
                answers[index] = too_long(needs, self._positions)
        order = sorted(set(range(len(requests))) - answers.keys(), key=lambda i: (requests[i].turn, lengths[i], requests[i].key))
        for batch in batches(order, lengths, self.config.batch_size, self.config.batch_tokens):
            forced = self._forced([requests[i] for i in batch], [[]] * len(batch))
            for index, item, tokens in zip(batch, forced, self._generate(forced), strict=True):
                answers[index] = self._answer(tokens, len(item.prompt))
        return [answers[i] for i in range(len(requests))]

    def _answer(self, tokens: list[int], prompt_tokens: int) -> Answer:
        stop, tokens = self.prompt.end_of_turn, tokens[: self._positions - prompt_tokens]
        ended = stop in tokens
        kept = tokens[: tokens.index(stop) + 1] if ended else tokens
        if strange := [token for token in kept if token not in self._student_ids]:
            unknown = self.audio_model.prompt.tokenizer.convert_ids_to_tokens(strange[0])
            return Answer("", [], prompt_tokens, "error", f"the answer has a token that the student lacks: {unknown}")
        return Answer(self.prompt.decode(kept), kept, prompt_tokens, "eos" if ended else "length")

    def score(self, requests: Sequence[Request], answers: Sequence[Answer]) -> list[Mapping[str, Tensor]]:
        """Teacher-force the given answers, each after its clip.

        Raises InputError where teacher and student decode an answer's tokens to different texts.
        """
        lengths = [self._length(request) + len(answer.tokens) for request, answer in zip(requests, answers, strict=True)]
        refuse_unscorable(requests, answers, lengths, self._positions, self.config.model)
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
        """Raises InputError unless the teacher decodes the stored ids to the same text as the student."""
        teacher_text, student_text = (prompt.decode(item.response) for prompt in (self.audio_model.prompt, self.prompt))
        if teacher_text != student_text:
            raise InputError(
                f"the answer of `{item.name}` is `{student_text[:60]}` to the student "
                f"and `{teacher_text[:60]}` to teacher `{self.config.model}`"
            )

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.audio_model.lm, self.config.signals, self.audio_model.lora_scope)

    def _length(self, request: Request) -> int:
        """Length of a prompt in positions, audio included."""
        around = self.audio_model.prompt_for(request.question)
        return len(around.before) + self.audio_model.positions(_clip(request).samples) + len(around.after)

    def _forced(self, requests: Sequence[Request], responses: Sequence[list[int]]) -> list[ScoredResponse]:
        with torch.inference_mode():
            audio = self.audio_model.encode_audio([_clip(request).load() for request in requests])
        out = []
        for request, audio_QE, response in zip(requests, audio, responses, strict=True):
            around = self.audio_model.prompt_for(request.question)
            assert len(audio_QE) == self.audio_model.positions(
                _clip(request).samples
            ), "the encoder made another number of positions than the clip's length gives"
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
            inputs = {"inputs_embeds": embeds_BSE, "attention_mask": mask_BS.to(lm.device)}
            out_BN = generate_greedily(lm, inputs, self.config.max_new_tokens, stop)
        tokens: list[list[int]] = out_BN.tolist()
        return tokens


def _clip(request: Request) -> Clip:
    assert request.clip is not None, "only turns with a clip are accepted"
    return request.clip
