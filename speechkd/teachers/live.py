"""Teachers that run inside the training step, under no gradient, on the very responses that the student is trained on.

    self       the student's own LLM with LoRA off, reading text where the student hears audio (BLSP, wong26a's setting); no second copy
    snapshot   the student as it was before training, hearing the same clips (arXiv 2509.18579): frozen copies of layer mix and projector
    text_llm   another text LLM, of any depth and width, on a vocabulary that agrees (arXiv 2509.14930; textual teacher of arXiv 2509.18579)
    speech     another distilled student (an export), hearing the same clips through the same encoder (arXiv 2602.01547)
Their outputs have the type of the student's, so a loss never knows where its teacher ran. A pass is a method (`outputs`), not the
module's forward: DeepSpeed's hooks on a forward read its result and know tensors and tuples only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from speechkd.core.types import Batch
from speechkd.losses.base import Positions
from speechkd.losses.positions import predicting_positions
from speechkd.models.language_model import LanguageModel
from speechkd.models.student import Student, hear, place_audio
from speechkd.teachers.live_config import LiveConfig, SelfConfig, SnapshotConfig, TextLlmConfig


@dataclass(slots=True, kw_only=True)
class ModelOutputs:
    """The outputs of one model for a micro-batch: its hidden states, and where in them the rows of losses stand."""

    llm: LanguageModel
    states: tuple[Tensor, ...]
    """[B * S, width]: every layer from the embeddings on, or the final one alone"""
    predict_T: Tensor
    """flat positions that predict the response"""
    to_T: Tensor | None
    """which of the batch's T tokens they are; None: all, in order"""
    audio_A: Tensor | None
    """flat audio positions; None for a model that reads text in place of audio"""
    audio_CQE: Tensor | None = None
    """projected audio"""
    attention_CQ: Tensor | None = None
    """attention of each clip's response to its audio positions"""
    gate_CK: Tensor | None = None
    """logits of a language gate"""

    def final(self, positions: Positions, rows: int) -> Tensor:
        """Final states [rows, width] at response or audio positions; rows of examples that this model did not read are zero."""
        return self._at(self.states[-1], positions, rows)

    def layer(self, number: int, positions: Positions, rows: int) -> Tensor:
        """States of layer `number` (1 is the first block's output)."""
        assert len(self.states) > number, "layers were not asked for"
        return self._at(self.states[number], positions, rows)

    def _at(self, states_XE: Tensor, positions: Positions, rows: int) -> Tensor:
        if positions == "audio":
            assert self.audio_A is not None, "a text teacher has no audio positions"
            return states_XE[self.audio_A]
        picked_TE = states_XE[self.predict_T]
        if self.to_T is None:
            return picked_TE
        return picked_TE.new_zeros(rows, picked_TE.shape[1]).index_copy(0, self.to_T, picked_TE)


class TextTeacher(nn.Module):
    """A text LLM on the view that was collated for it: the student's own (`own_llm` is None, LoRA off), or another."""

    def __init__(self, name: str, causal_lm: nn.Module | None) -> None:
        super().__init__()
        self.name = name
        self.other_llm = None if causal_lm is None else LanguageModel(causal_lm)

    def llm(self, student: Student) -> LanguageModel:
        """The language model that it runs."""
        return student.llm if self.other_llm is None else self.other_llm

    @torch.no_grad()
    def outputs(self, student: Student, batch: Batch, encoded_LCFD: tuple[Tensor, ...], every_layer: bool, attention: bool) -> ModelOutputs:
        """One pass over the view."""
        llm, view = self.llm(student), batch.views[self.name]
        with llm.switch.set(off=True):
            states = llm.states(llm.embed(view.ids_BS), view.mask_BS, every_layer)
        flat = tuple(s.flatten(0, 1) for s in states)
        return ModelOutputs(llm=llm, states=flat, predict_T=predicting_positions(view.response_T), to_T=view.to_T, audio_A=None)


class AudioTeacher(nn.Module):
    """A layer mix and projector of its own on the student's encoder states, before the student's LLM (LoRA off) or another."""

    def __init__(self, mix: nn.Module, projector: nn.Module, causal_lm: nn.Module | None) -> None:
        super().__init__()
        self.mix, self.projector = mix.requires_grad_(False), projector.requires_grad_(False)
        self.other_llm = None if causal_lm is None else LanguageModel(causal_lm)

    def llm(self, student: Student) -> LanguageModel:
        """The language model that it runs."""
        return student.llm if self.other_llm is None else self.other_llm

    def train(self, mode: bool = True) -> AudioTeacher:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def outputs(self, student: Student, batch: Batch, encoded_LCFD: tuple[Tensor, ...], every_layer: bool, attention: bool) -> ModelOutputs:
        """One pass over the student's own rows."""
        llm = self.llm(student)
        audio_CQE = hear(self.mix, self.projector, encoded_LCFD, batch).audio_CQD
        with llm.switch.set(off=True), _recorded(llm, attention) as record:
            states = llm.states(place_audio(llm.embed(batch.ids_BS), batch, audio_CQE), batch.mask_BS, every_layer)
        return ModelOutputs(
            llm=llm,
            states=tuple(s.flatten(0, 1) for s in states),
            predict_T=predicting_positions(batch.response_T),
            to_T=None,
            audio_A=batch.audio_to_A,
            audio_CQE=audio_CQE,
            attention_CQ=audio_attention(record.weights(), batch, audio_CQE.shape[:2]) if attention else None,
        )


class _Record:
    """The last block's attention weights [B, H, S, S], caught as they are made."""

    def __init__(self, llm: LanguageModel, wanted: bool) -> None:
        self._llm, self._wanted, self._kept = llm, wanted, None

    def __enter__(self) -> _Record:
        self._hook = self._llm.last_attention().register_forward_hook(self._keep) if self._wanted else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._hook is not None:
            self._hook.remove()

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._kept = output[1]

    def weights(self) -> Tensor:
        assert self._kept is not None, "attention weights exist only in the eager implementation"
        return self._kept


def _recorded(llm: LanguageModel, wanted: bool) -> _Record:
    return _Record(llm, wanted)


def audio_attention(weights_BHSS: Tensor, batch: Batch, shape: Sequence[int]) -> Tensor:
    """How much each clip's response attends to each of its audio positions, [C, Q]: mean over heads, sum over response tokens (PL-Distill).

    Rows are the response tokens' own positions. Only ratios within a clip matter to AwCKA, so nothing is normalised here.
    """
    B, _, S, _ = weights_BHSS.shape
    rows_BS = torch.zeros(B * S, dtype=weights_BHSS.dtype, device=weights_BHSS.device)
    rows_BS = rows_BS.index_add(0, batch.response_T, batch.mask_T.to(rows_BS.dtype)).view(B, S)
    to_BS = torch.einsum("bhst,bs->bt", weights_BHSS, rows_BS) / weights_BHSS.shape[1]
    C, Q = shape
    return to_BS.new_zeros(C * Q).index_copy(0, batch.audio_from_A, to_BS.flatten()[batch.audio_to_A]).view(C, Q)


LiveTeacher = TextTeacher | AudioTeacher


def build_live(
    name: str, config: LiveConfig, student: Student, load_llm: Callable[[str], nn.Module], load_speech: Callable[[str], AudioTeacher]
) -> LiveTeacher:
    """The live teacher of a recipe's block. The student is as it will be at step 0; `load_...` come from the engine, which partitions."""
    if isinstance(config, SelfConfig):
        return TextTeacher(name, None)
    if isinstance(config, TextLlmConfig):
        return TextTeacher(name, load_llm(config.model))
    if isinstance(config, SnapshotConfig):
        return AudioTeacher(copy.deepcopy(student.mix), copy.deepcopy(student.projector), None)
    return load_speech(config.model)
