"""A frozen student as a stored teacher: an export hears the clip and answers (self-distillation, descriptions of clips)."""

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
from speechkd.teachers.hearing import HearingTeacher
from speechkd.teachers.hf_local import LocalConfig

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class SnapshotTeacherConfig(LocalConfig):
    """`model`: a folder that `speechkd export` wrote. Its precision is the export's own."""

    backend: Literal["snapshot"] = "snapshot"

    def fingerprint(self) -> str | None:
        """Of the export: its manifest has the digest of every file and of the models that it stands on."""
        read_manifest(Path(self.model))
        return sha256_file(Path(self.model) / MANIFEST)

    def positions_per_s(self) -> float:
        """As the student's projector makes of the encoder's frames; counted over ten seconds."""
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

    def _llm(self) -> Any:
        folder = Path(self.model)
        return text_config(llm_of(folder, read_manifest(folder)))


class StudentEars:
    """An exported student."""

    def __init__(self, folder: str, template: str) -> None:
        """Raises InputError for a damaged export, and for one that was trained with another template."""
        self._whole = load_student(folder)
        if self._whole.prompt.text != template:
            raise InputError(f"`{folder}` was trained with another prompt template than the recipe's (teachers: model)")
        self.prompt, self.lm = self._whole.prompt, self._whole.student.llm.lm
        heard = self._whole.student.encoder.hearing
        self.window = heard.window * heard.hop
        self._asked: dict[str, StudentPrompt] = {}

    def around(self, question: str) -> StudentPrompt:
        """The student's own prompt."""
        if question not in self._asked:
            self._asked[question] = self.prompt.student(question)
        return self._asked[question]

    def positions(self, samples: int) -> int:
        """As the student's projector counts them."""
        return self._whole.student.projector.positions(self._whole.student.encoder.hearing.frames(samples))

    def hear(self, clips: Sequence[np.ndarray]) -> list[Tensor]:
        """Encoder, layer mix and projector."""
        student = self._whole.student
        batch = self._whole.batch(clips, [""] * len(clips)).to(student.device)
        audio_CQD = student.hear(student.encoder(batch.features_BMT, batch.clips.frames_C), batch).audio_CQD
        return [audio_QD[valid_Q] for audio_QD, valid_Q in zip(audio_CQD, batch.clips.mask_CQ, strict=True)]

    def lora_scope(self, audio_BS: Tensor) -> AbstractContextManager[None]:
        """LoRA where the student has it: everywhere, or at audio positions only."""
        lora = self._whole.student.lora
        return self._whole.student.llm.switch.set(positions_BS=None if lora is None or lora.scope == "all" else audio_BS)


class SnapshotTeacher(HearingTeacher):
    """A student as it was exported."""

    Config = SnapshotTeacherConfig

    def __init__(self, config: SnapshotTeacherConfig, prompt: Prompt) -> None:
        """Raises InputError for an export that cannot be read, or whose tokens are not the student's."""
        super().__init__(config, prompt, StudentEars(config.model, prompt.text))
