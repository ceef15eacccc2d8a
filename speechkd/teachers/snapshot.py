"""Backend `snapshot`: an exported student hears the clip and answers (self-distillation, descriptions of clips)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speechkd.core.errors import InputError
from speechkd.core.files import sha256_file
from speechkd.models.architectures import meta_encoder
from speechkd.models.encoder_families import SAMPLE_RATE, hearing
from speechkd.models.exported import MANIFEST, llm_of, load_student, read_manifest
from speechkd.models.model_folder import text_config
from speechkd.models.projectors import PROJECTORS
from speechkd.models.prompt import Prompt, StudentPrompt
from speechkd.teachers.hf_local import LocalConfig
from speechkd.teachers.speech_llm import SpeechLlmTeacher

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class SnapshotTeacherConfig(LocalConfig):
    """`model`: a folder written by `speechkd export`; it runs in the precision of the export."""

    backend: Literal["snapshot"] = "snapshot"

    def fingerprint(self) -> str | None:
        """Digest of the export's manifest, which holds the digests of all its files and of the base models."""
        read_manifest(Path(self.model))
        return sha256_file(Path(self.model) / MANIFEST)

    def positions_per_s(self) -> float:
        """Positions that the export's encoder and projector make of ten seconds, divided by ten."""
        import torch

        student = read_manifest(Path(self.model)).student
        frames = hearing(meta_encoder(student.encoder)).frames(10 * SAMPLE_RATE)
        with torch.device("meta"):
            positions: int = PROJECTORS.get(student.projector.kind)(student.projector, 8, 8).positions(frames)
        return positions / 10

    def output_width(self) -> int:
        """Width of the student's output."""
        width: int = self._llm().vocab_size
        return width

    def state_width(self) -> int:
        """Width of the student's states."""
        width: int = self._llm().hidden_size
        return width

    def state_depth(self) -> int:
        """Layers of the student's language model."""
        depth: int = self._llm().num_hidden_layers
        return depth

    def _llm(self) -> Any:
        folder = Path(self.model)
        return text_config(llm_of(folder, read_manifest(folder)))


class StudentAudioModel:
    """An exported student as an `AudioModel`."""

    def __init__(self, folder: str, template: str) -> None:
        """Raises InputError for a damaged export, and for one that was trained with another template."""
        self._export = load_student(folder)
        if self._export.prompt.text != template:
            raise InputError(
                f"`{folder}` was trained with another prompt template than the recipe's: set prompt.template to its (teachers: model)"
            )
        self.prompt, self.lm = self._export.prompt, self._export.student.llm.lm
        encoder_input = self._export.student.encoder.hearing
        self.max_samples = encoder_input.window * encoder_input.hop
        self._prompts: dict[str, StudentPrompt] = {}

    def prompt_for(self, question: str) -> StudentPrompt:
        """The student's own prompt."""
        if question not in self._prompts:
            self._prompts[question] = self.prompt.student(question)
        return self._prompts[question]

    def positions(self, samples: int) -> int:
        """Number of positions that the student's projector makes of a clip."""
        return self._export.student.projector.positions(self._export.student.encoder.hearing.frames(samples))

    def encode_audio(self, clips: Sequence[np.ndarray]) -> list[Tensor]:
        """Embeddings [Q, D] of each clip: encoder, layer mix, projector."""
        student = self._export.student
        batch = self._export.batch(clips, [""] * len(clips)).to(student.device)
        audio_CQD = student.hear(student.encoder(batch.features_BMT, batch.clips.frames_C), batch).audio_CQD
        return [audio_QD[valid_Q] for audio_QD, valid_Q in zip(audio_CQD, batch.clips.mask_CQ, strict=True)]

    def lora_scope(self, audio_BS: Tensor) -> AbstractContextManager[None]:
        """LoRA where the student has it: everywhere, or at audio positions only."""
        lora = self._export.student.lora
        return self._export.student.llm.switch.set(positions_BS=None if lora is None or lora.scope == "all" else audio_BS)


class SnapshotTeacher(SpeechLlmTeacher):
    """An exported student as a teacher."""

    Config = SnapshotTeacherConfig

    def __init__(self, config: SnapshotTeacherConfig, prompt: Prompt) -> None:
        """Raises InputError for an export that cannot be read, or whose token ids differ from the student's."""
        super().__init__(config, prompt, StudentAudioModel(config.model, prompt.text))
