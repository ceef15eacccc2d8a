"""A speech LLM of the Qwen2-Audio type (arXiv 2407.10759) in this process: it hears the clip, answers greedily, and scores answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from speechkd.core.errors import InputError
from speechkd.models.encoder import SAMPLE_RATE
from speechkd.models.model_folder import local_folder
from speechkd.models.pretrained import load_speech_llm
from speechkd.models.prompt import Prompt, StudentPrompt
from speechkd.teachers.hearing import HearingTeacher
from speechkd.teachers.hf_local import LoadedConfig

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class HfAudioConfig(LoadedConfig):
    """`model`: a folder or hub id of a Qwen2-Audio. It reads no metadata, and answers nothing of which there is no clip."""

    backend: Literal["hf_audio"] = "hf_audio"

    def positions_per_s(self) -> float:
        """One in 40 ms."""
        return 25.0


class SpeechLlmEars:
    """A Qwen2-Audio of transformers: Whisper-type tower, pooling by 2, one linear layer, Qwen2."""

    def __init__(self, config: HfAudioConfig, template: str) -> None:
        """Raises InputError for a folder without processor or chat template, and for a model of another kind."""
        import torch
        from transformers import AutoProcessor

        try:
            self._processor: Any = AutoProcessor.from_pretrained(str(local_folder(config.model)), trust_remote_code=False)
            features, tokenizer = self._processor.feature_extractor, self._processor.tokenizer
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"no processor of a speech LLM at `{config.model}`: {str(error).splitlines()[0][:120]}") from None
        if features.sampling_rate != SAMPLE_RATE:
            raise InputError(f"`{config.model}` hears {features.sampling_rate} Hz, shards have {SAMPLE_RATE} (teachers: model)")
        tokenizer.chat_template = tokenizer.chat_template or self._processor.chat_template
        self.prompt = Prompt(template, tokenizer, config.model)
        model: Any = load_speech_llm(config.model, getattr(torch, config.dtype), config.device_map)
        self.lm = model if config.device_map is not None else model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.window = int(features.n_samples)
        marks = (self._processor.audio_bos_token, self._processor.audio_eos_token)
        self._bos, self._eos = tokenizer.convert_tokens_to_ids(list(marks))
        if None in (self._bos, self._eos):
            raise InputError(f"the tokenizer of `{config.model}` lacks `{marks[0]}` or `{marks[1]}`, which stand around a clip")
        self._asked: dict[str, StudentPrompt] = {}

    def around(self, question: str) -> StudentPrompt:
        """The prompt's ids, the marks of a clip included."""
        if question not in self._asked:
            asked = self.prompt.student(question)
            self._asked[question] = StudentPrompt([*asked.before, self._bos], [self._eos, *asked.after])
        return self._asked[question]

    def positions(self, samples: int) -> int:
        """One position in 40 ms: the convolution and the pooling halve the frames of 10 ms, each in its own rounding."""
        hop = self._processor.feature_extractor.hop_length
        return int(self._lengths(-(-min(samples, self.window) // hop))[1])

    def _lengths(self, frames: Any) -> Any:
        """(after the convolutions, after the pooling), as the model itself counts them."""
        return self.lm.model.audio_tower._get_feat_extract_output_lengths(frames)

    def hear(self, clips: Sequence[np.ndarray]) -> list[Tensor]:
        """[Q, E] of each clip: tower and projector as the model's own forward runs them, padding masked."""
        import torch
        from transformers.masking_utils import create_bidirectional_mask

        model, window = self.lm.model, {"padding": "max_length", "return_attention_mask": True, "return_tensors": "pt"}
        made = self._processor.feature_extractor(list(clips), sampling_rate=SAMPLE_RATE, **window)
        device, dtype = model.audio_tower.device, model.audio_tower.dtype
        features_BMT = made["input_features"].to(device, dtype)
        frames_B, positions_B = self._lengths(made["attention_mask"].sum(-1).to(device))
        length = (features_BMT.shape[-1] - 2) // 2 + 1
        valid_BF = (torch.arange(length, device=device)[None] < frames_B[:, None]).long()
        shape = torch.zeros(len(clips), length, 1, dtype=dtype, device=device)
        mask = create_bidirectional_mask(config=model.audio_tower.config, inputs_embeds=shape, attention_mask=valid_BF)
        states_BQD = model.audio_tower(features_BMT, attention_mask=mask).last_hidden_state
        audio_BQE = model.multi_modal_projector(states_BQD)
        return [audio_QE[:count] for audio_QE, count in zip(audio_BQE, positions_B.tolist(), strict=True)]

    def lora_scope(self, audio_BS: Tensor) -> AbstractContextManager[None]:
        """It has one state."""
        return nullcontext()


class HfAudioTeacher(HearingTeacher):
    """Hears what the student hears; its last-layer attention over the clip can be stored (PL-Distill, arXiv 2602.01547)."""

    Config = HfAudioConfig

    def __init__(self, config: HfAudioConfig, prompt: Prompt) -> None:
        """Raises InputError for a model that cannot be loaded, or whose tokens are not the student's."""
        super().__init__(config, prompt, SpeechLlmEars(config, prompt.text))
