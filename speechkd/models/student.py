"""The student: frozen encoder, layer mix, projector, frozen language model. What trains is the mix and the projector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from speechkd.core.config import Config
from speechkd.core.errors import InputError
from speechkd.core.types import Batch
from speechkd.models.encoder import FrozenEncoder, LayerMix
from speechkd.models.language_model import LanguageModel
from speechkd.models.projectors import PROJECTORS


class Student(nn.Module):
    """Audio and text in one sequence through a frozen LM.

    The sequence of module calls is the same for every batch (encoder, mix, projector, LM): a rank without audio runs a
    dummy clip that reaches no position, so that ZeRO-3's gathers stay in step on all ranks.
    """

    def __init__(self, encoder: nn.Module, causal_lm: nn.Module, projector: Config, normalise_layers: bool = False) -> None:
        """`encoder`: a transformers WhisperEncoder; `causal_lm`: a transformers causal LM; both loaded (and possibly partitioned)."""
        super().__init__()
        self.encoder = FrozenEncoder(encoder)
        self.llm = LanguageModel(causal_lm)
        self.mix = LayerMix(self.encoder.layers, normalise_layers)
        kind = projector.kind  # type: ignore[attr-defined]  # every projector's Config has it
        self.projector: Any = PROJECTORS.get(kind)(projector, self.encoder.width, self.llm.width)

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that train."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def embeddings(self, batch: Batch) -> Tensor:
        """Input embeddings [B, S, D]: text tokens, with projected audio at its positions."""
        audio_CQD = self.projector(self.mix(self.encoder(batch.features_BMT)))
        text_BSD = self.llm.embed(batch.ids_BS)
        audio_AD = audio_CQD.flatten(0, 1)[batch.audio_from_A].to(text_BSD.dtype)
        return text_BSD.flatten(0, 1).index_copy(0, batch.audio_to_A, audio_AD).view_as(text_BSD)

    def forward(self, batch: Batch, predict_T: Tensor) -> Tensor:
        """Hidden states [T, D] at the flat positions `predict_T` (they predict the response); only these reach the head."""
        hidden_BSD = self.llm.hidden(self.embeddings(batch), batch.mask_BS)
        return hidden_BSD.flatten(0, 1)[predict_T]

    @torch.no_grad()
    def generate(self, batch: Batch, max_new_tokens: int, stop: int) -> list[list[int]]:
        """Greedy answers to a batch of prompts (no responses in it), each without its stop token."""
        embeddings_BSD, mask_BS = _left_padded(self.embeddings(batch), batch.mask_BS)
        out_BN = self.llm.lm.generate(
            inputs_embeds=embeddings_BSD,
            attention_mask=mask_BS,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=stop,
            pad_token_id=stop,
        )
        return [row[: row.index(stop)] if stop in row else row for row in out_BN.tolist()]


def _left_padded(values_BSD: Tensor, mask_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Move right padding to the left, row by row."""
    length = mask_BS.shape[1]
    shift_B1 = length - mask_BS.sum(1, keepdim=True)
    index_BS = (torch.arange(length, device=mask_BS.device)[None] - shift_B1) % length
    return values_BSD.gather(1, index_BS[..., None].expand_as(values_BSD)), mask_BS.gather(1, index_BS)


def load_trainable(student: Student, tensors: dict[str, Tensor]) -> None:
    """Copy trained tensors in, by name; names and shapes must be exactly the student's."""
    own = dict(student.trainable())
    if own.keys() != tensors.keys():
        raise InputError(f"trained tensors must be {sorted(own)}, are {sorted(tensors)}")
    for name, parameter in own.items():
        if parameter.shape != tensors[name].shape:
            raise InputError(f"trained tensor `{name}` must have shape {tuple(parameter.shape)}, has {tuple(tensors[name].shape)}")
        parameter.data.copy_(tensors[name])
