"""The student model: frozen speech encoder, layer mix, projector, LLM. Trained are the mix, the projector and, if configured, LoRA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from speechkd.core.errors import InputError
from speechkd.core.types import Batch
from speechkd.models.architectures import meta_causal_lm, meta_encoder
from speechkd.models.encoder import FrozenEncoder, layer_mix
from speechkd.models.greedy import generate_greedily
from speechkd.models.language_model import LanguageModel
from speechkd.models.lora import LoraConfig, Switch, add_lora, linear_layers, matching
from speechkd.models.model_folder import config_home
from speechkd.models.projectors import PROJECTORS, Gated, Hint
from speechkd.models.recompute import recompute_blocks
from speechkd.models.student_config import StudentConfig

LLM, PROJECTOR = "llm.lm.", "projector."
"""Prefixes of parameter names in the two parts that can have LoRA"""


class Heard(NamedTuple):
    """A batch's clips as LLM inputs, and the logits over K languages where the projector has a language gate."""

    audio_CQD: Tensor
    gate_CK: Tensor | None


class Student(nn.Module):
    """Speech LLM: projected audio and text tokens in one sequence through one language model.

    The sequence of module calls is the same for every batch (encoder, mix, projector, LM): a rank without audio runs a
    dummy clip that reaches no position, so that ZeRO-3's gathers stay in step on all ranks.
    """

    def __init__(self, encoder: nn.Module, causal_lm: nn.Module, config: StudentConfig) -> None:
        """`encoder`: a transformers speech encoder; `causal_lm`: a transformers causal LM; both loaded (and possibly partitioned).

        `config` says what is built around them: projector, layer mix, LoRA; its model names are not read.
        Raises InputError for a LoRA target that matches no linear layer of LLM and projector.
        """
        super().__init__()
        self.encoder = FrozenEncoder(encoder, config.encoder_window)
        self.llm = LanguageModel(causal_lm)
        self.mix = layer_mix(config.encoder_states, self.encoder.layers, config.normalise_layers)
        made: Any = PROJECTORS.get(config.projector.kind)(config.projector, self.encoder.width, self.llm.width)
        self.projector = made
        self.lora = config.lora
        if self.lora is not None:
            names = lora_names(self, self.lora)
            self.llm.add_lora([n.removeprefix(LLM) for n in names if n.startswith(LLM)], self.lora)
            add_lora(self.projector, [n.removeprefix(PROJECTOR) for n in names if n.startswith(PROJECTOR)], self.lora, Switch())
        recompute_blocks(self.llm.blocks(), config.recompute, self.llm.switch, self.lora is not None and self.lora.dropout > 0)

    @property
    def device(self) -> torch.device:
        """Device of the trained parts."""
        device: torch.device = next(self.projector.parameters()).device
        return device

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that train."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def hear(self, states_LCFD: tuple[Tensor, ...], batch: Batch) -> Heard:
        """Encoder states -> LLM inputs, by layer mix and projector."""
        return hear(self.mix, self.projector, states_LCFD, batch)

    def embeddings(self, batch: Batch, audio_CQD: Tensor) -> Tensor:
        """Input embeddings [B, S, D]: text tokens, with projected audio at its positions."""
        return place_audio(self.llm.embed(batch.ids_BS), batch, audio_CQD)

    def states(self, batch: Batch, audio_CQD: Tensor, every_layer: bool = False) -> tuple[Tensor, ...]:
        """Hidden states [B, S, D], as `LanguageModel.states`."""
        with self.llm.switch.set(positions_BS=self._lora_positions(batch)):
            return self.llm.states(self.embeddings(batch, audio_CQD), batch.mask_BS, every_layer)

    def _lora_positions(self, batch: Batch) -> Tensor | None:
        """bool [B, S], the audio positions, if LoRA acts only there; None: everywhere."""
        if self.lora is None or self.lora.scope == "all":
            return None
        audio_X = torch.zeros(batch.ids_BS.numel(), dtype=torch.bool, device=batch.ids_BS.device)
        return audio_X.index_fill(0, batch.audio_to_A, True).view_as(batch.ids_BS)

    def forward(self, batch: Batch, predict_T: Tensor) -> Tensor:
        """Hidden states [T, D] at the flat positions `predict_T` (they predict the response); only these reach the head."""
        (hidden_BSD,) = self.states(batch, self.hear(self.encoder(batch.features_BMT, batch.clips.frames_C), batch).audio_CQD)
        return hidden_BSD.flatten(0, 1)[predict_T]

    @torch.no_grad()
    def generate(self, batch: Batch, max_new_tokens: int, stop: int, ends: Callable[[Tensor], Tensor] | None = None) -> list[list[int]]:
        """Greedy answers to a batch of prompts (no responses in it), each without its stop token. `ends`: as `generate_greedily`."""
        audio_CQD = self.hear(self.encoder(batch.features_BMT, batch.clips.frames_C), batch).audio_CQD
        embeddings_BSD, mask_BS = _left_padded(self.embeddings(batch, audio_CQD), batch.mask_BS)
        positions_BS = self._lora_positions(batch)
        if positions_BS is not None:
            positions_BS = _left_padded(positions_BS[..., None], batch.mask_BS)[0][..., 0]
        with self.llm.switch.set(positions_BS=positions_BS):
            inputs = {"inputs_embeds": embeddings_BSD, "attention_mask": mask_BS}
            out_BN = generate_greedily(self.llm.lm, inputs, max_new_tokens, stop, ends)
        return [row[: row.index(stop)] if stop in row else row for row in out_BN.tolist()]


def meta_student(config: StudentConfig) -> Student:
    """The recipe's student on the meta device, from configuration files alone (`student.config_root` stands in for a hub out of reach).

    Raises InputError for a LoRA target that matches nothing.
    """
    dtype = getattr(torch, config.dtype)
    encoder = meta_encoder(config_home(config.encoder, config.config_root), dtype)
    llm = meta_causal_lm(config_home(config.llm, config.config_root), dtype)
    with torch.device("meta"):
        return Student(encoder, llm, config.model_copy(update={"recompute": "off"}))


def hear(mix: nn.Module, projector: Any, states_LCFD: tuple[Tensor, ...], batch: Batch) -> Heard:
    """Encoder states -> LLM inputs; zero or anything at positions that no sequence reads.

    A projector with a language gate gets the true language in training only.
    """
    mixed_CFD = mix(states_LCFD, projector.Config.SUMS_LAYERS)
    if not projector.Config.GATED:
        return Heard(projector(mixed_CFD, batch.read_R), None)
    hint = Hint(language_B=batch.clips.language_C if projector.training else None, progress=batch.progress)
    out: Gated = projector(mixed_CFD, hint, batch.read_R)
    return Heard(out.states_BQE, out.gate_BK)


def place_audio(text_BSD: Tensor, batch: Batch, audio_CQD: Tensor) -> Tensor:
    """Token embeddings with projected audio at its positions."""
    audio_AD = audio_CQD.flatten(0, 1)[batch.audio_from_A].to(text_BSD.dtype)
    return text_BSD.flatten(0, 1).index_copy(0, batch.audio_to_A, audio_AD).view_as(text_BSD)


def lora_names(student: Student, lora: LoraConfig) -> list[str]:
    """Linear layers that LoRA goes on, by their names in the student. Raises InputError for a target that matches nothing."""
    head = student.llm.lm.get_output_embeddings()
    names = [LLM + name for name, part in linear_layers(student.llm.lm).items() if part is not head]
    names += [PROJECTOR + name for name in linear_layers(student.projector)]
    return matching(lora.targets, names)


def _left_padded(values_BSD: Tensor, mask_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Move right padding to the left, row by row."""
    length = mask_BS.shape[1]
    shift_B1 = length - mask_BS.sum(1, keepdim=True)
    index_BS = (torch.arange(length, device=mask_BS.device)[None] - shift_B1) % length
    return values_BSD.gather(1, index_BS[..., None].expand_as(values_BSD)), mask_BS.gather(1, index_BS)


def load_trainable(student: Student, tensors: dict[str, Tensor]) -> None:
    """Copy trained tensors in, by name; names and shapes must be exactly the student's."""
    parameters = dict(student.trainable())
    if parameters.keys() != tensors.keys():
        raise InputError(f"trained tensors must be {sorted(parameters)}, are {sorted(tensors)}")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise InputError(f"trained tensor `{name}` must have shape {tuple(parameter.shape)}, has {tuple(tensors[name].shape)}")
        parameter.data.copy_(tensors[name])
