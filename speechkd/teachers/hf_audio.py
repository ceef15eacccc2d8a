"""Backend `hf_audio`: a Qwen2-Audio model (arXiv 2407.10759) in this process hears the clip, answers greedily and scores given answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from speechkd.core.errors import InputError
from speechkd.models.encoder import SAMPLE_RATE
from speechkd.models.model_folder import local_folder
from speechkd.models.pretrained import load_speech_llm
from speechkd.models.prompt import Prompt, StudentPrompt
from speechkd.teachers.hf_local import LoadedConfig
from speechkd.teachers.speech_llm import SpeechLlmTeacher

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class HfAudioConfig(LoadedConfig):
    """`model`: folder or hub id of a Qwen2-Audio. It reads no metadata and answers only requests that have a clip."""

    backend: Literal["hf_audio"] = "hf_audio"

    def positions_per_s(self) -> float:
        """One every 40 ms."""
        return 25.0


class Qwen2AudioModel:
    """Qwen2-Audio from transformers: a Whisper-style audio tower, pooling by 2, one linear layer, then Qwen2."""

    def __init__(self, config: HfAudioConfig, template: str) -> None:
        """Raises InputError for a folder without processor or chat template, and for a model of another architecture."""
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
        self.max_samples = int(features.n_samples)
        marks = (self._processor.audio_bos_token, self._processor.audio_eos_token)
        self._bos, self._eos = tokenizer.convert_tokens_to_ids(list(marks))
        if None in (self._bos, self._eos):
            raise InputError(
                f"the tokenizer of `{config.model}` lacks `{marks[0]}` or `{marks[1]}`, which mark the start and end of "
                "a clip: name a Qwen2-Audio (teachers: model)"
            )
        self._prompts: dict[str, StudentPrompt] = {}

    def prompt_for(self, question: str) -> StudentPrompt:
        """Token ids before and after the audio, including the start and end markers of a clip."""
        if question not in self._prompts:
            ids = self.prompt.student(question)
            self._prompts[question] = StudentPrompt([*ids.before, self._bos], [self._eos, *ids.after])
        return self._prompts[question]

    def positions(self, samples: int) -> int:
        """One position every 40 ms: convolution and pooling each halve the 10 ms frames, with different rounding."""
        hop = self._processor.feature_extractor.hop_length
        return int(self._lengths(-(-min(samples, self.max_samples) // hop))[1])

    def _lengths(self, frames: Any) -> Any:
        """(frames after the convolutions, positions after the pooling), computed by the model's own method."""
        return self.lm.model.audio_tower._get_feat_extract_output_lengths(frames)

    def encode_audio(self, clips: Sequence[np.ndarray]) -> list[Tensor]:
        """Embeddings [Q, E] of each clip from tower and projector, with padding masked as in the model's own forward."""
        import torch
        from transformers.masking_utils import create_bidirectional_mask

        model, options = self.lm.model, {"padding": "max_length", "return_attention_mask": True, "return_tensors": "pt"}
        inputs = self._processor.feature_extractor(list(clips), sampling_rate=SAMPLE_RATE, **options)
        device, dtype = model.audio_tower.device, model.audio_tower.dtype
        features_BMT = inputs["input_features"].to(device, dtype)
        frames_B, positions_B = self._lengths(inputs["attention_mask"].sum(-1).to(device))
        length = (features_BMT.shape[-1] - 2) // 2 + 1
        valid_BF = (torch.arange(length, device=device)[None] < frames_B[:, None]).long()
        shape = torch.zeros(len(clips), length, 1, dtype=dtype, device=device)
        mask = create_bidirectional_mask(config=model.audio_tower.config, inputs_embeds=shape, attention_mask=valid_BF)
        states_BQD = model.audio_tower(features_BMT, attention_mask=mask).last_hidden_state
        audio_BQE = model.multi_modal_projector(states_BQD)
        return [audio_QE[:count] for audio_QE, count in zip(audio_BQE, positions_B.tolist(), strict=True)]

    def lora_scope(self, audio_BS: Tensor) -> AbstractContextManager[None]:
        """No LoRA to switch."""
        return nullcontext()


class HfAudioTeacher(SpeechLlmTeacher):
    """Qwen2-Audio as a teacher. Its last-layer attention over the clip can be stored too (PL-Distill, arXiv 2602.01547)."""

    Config = HfAudioConfig

    def __init__(self, config: HfAudioConfig, prompt: Prompt) -> None:
        """Raises InputError for a model that cannot be loaded, or whose token ids differ from the student's."""
        super().__init__(config, prompt, Qwen2AudioModel(config, prompt.text))
