"""Qwen2-Audio's folder: `Qwen2AudioForConditionalGeneration` of transformers and of vLLM loads it without code of ours.

A student fits whose encoder is Qwen2-Audio's (it attends to the clip alone, and averages pairs before its last norm), with one Linear and a
Qwen2. There a clip of n samples has floor(ceil(ceil(n / 160) / 2) / 2) positions, here ceil(n / 640): clips must be padded to whole 40 ms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from speechkd.models.encoder import LastLayer
from speechkd.models.encoder_families import SAMPLE_RATE
from speechkd.models.exported import DistilledStudent
from speechkd.models.formats import Probe, audio_lora_only
from speechkd.models.formats.chat_template import chat_template, chat_text, check_chat
from speechkd.models.formats.parts import language_model_tensors, save_generation_config, text_config, tokenizer_with
from speechkd.models.projectors.linear import LinearProjector
from speechkd.models.student import Student

AUDIO, TOKENS = "<|AUDIO|>", ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
"""Stands for a clip; all tokens that engines look up by name"""


class Qwen2AudioFormat:
    """Writes and reads Qwen2-Audio's folder."""

    CLIP_SAMPLES: ClassVar[int] = 640
    USAGE: ClassVar[str] = """\
A folder as Qwen2-Audio's. LoRA is merged; all weights are here.

```python
import numpy as np
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

folder = "path/to/this/folder"
model, processor = Qwen2AudioForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
sound = np.pad(samples_16khz_mono_float32, (0, -len(samples_16khz_mono_float32) % 640))  # whole 40 ms
asked = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What language is spoken?"}]}]
text = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
inputs = processor(text=text, audio=[sound], sampling_rate=16_000, return_tensors="pt")
tokens = model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]
print(processor.decode(tokens, skip_special_tokens=True))
```

**Pad every clip to whole 40 ms** with silence, as above: a clip of another length loses its last position, with which the student was
trained.
With vLLM: `vllm serve path/to/this/folder`, then `speechkd verify`."""

    def misfit(self, student: Student) -> str | None:
        """See `ExportFormat`."""
        kind = student.encoder.encoder.config.model_type
        if kind != "qwen2_audio_encoder":
            return f"its encoder is `{kind}`, must be Qwen2-Audio's own, which attends to the clip alone and pools before its last norm"
        if not isinstance(student.mix, LastLayer):
            return "it sums encoder layers (student.encoder_states), must take the last"
        if not isinstance(student.projector, LinearProjector):
            return f"its projector is a {type(student.projector).__name__} (student.projector.kind), must be `linear`"
        if student.projector.pool != 1:
            return f"its projector pools {student.projector.pool} positions (student.projector.pool), must pool 1: the encoder does"
        family = student.llm.lm.config.model_type
        if family != "qwen2":
            return f"its language model is a `{family}` (student.llm), must be a `qwen2`"
        return audio_lora_only(student)

    def write(self, student: DistilledStudent, folder: Path) -> None:
        """See `ExportFormat`."""
        from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor

        tokenizer = tokenizer_with(student, TOKENS)
        tokenizer.chat_template = chat_template(student.prompt, AUDIO)
        check_chat(student, tokenizer, tokenizer.chat_template, AUDIO)
        marks = [tokenizer.convert_tokens_to_ids(token) for token in TOKENS]
        encoder, projector = student.student.encoder.encoder, student.student.projector
        rows, dtype = max(marks) + 1, next(encoder.parameters()).dtype
        family: Any = Qwen2AudioConfig
        config = family(
            audio_config=encoder.config.to_dict(),
            text_config=text_config(student, rows),
            audio_token_index=marks[0],
            tie_word_embeddings=False,
            dtype=dtype,
        )
        with torch.device("meta"):
            whole: Any = Qwen2AudioForConditionalGeneration(config)
        tensors = {f"model.audio_tower.{name}": tensor for name, tensor in encoder.state_dict().items()}
        tensors |= {f"model.multi_modal_projector.{name}": tensor for name, tensor in projector.state_dict().items()}
        for name, tensor in language_model_tensors(student, rows).items():
            tensors[f"model.language_model.{name.removeprefix('model.')}" if name != "lm_head.weight" else name] = tensor
        whole.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
        whole.save_pretrained(folder)
        save_generation_config(student, folder, marks)
        processor = Qwen2AudioProcessor(student.features.extractor, tokenizer, chat_template=tokenizer.chat_template)
        processor.save_pretrained(folder)

    def logits(self, folder: Path, dtype: str, probe: Probe) -> Tensor:
        """See `ExportFormat`."""
        from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

        whole: Any = Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        processor: Any = AutoProcessor.from_pretrained(folder)
        sound = np.pad(probe.samples_T, (0, -probe.samples_T.size % self.CLIP_SAMPLES))
        text = chat_text(processor.tokenizer, processor.chat_template, probe.question)
        inputs = processor(text=text, audio=[sound], sampling_rate=SAMPLE_RATE, return_tensors="pt", add_special_tokens=False)
        ids = torch.cat([inputs["input_ids"], torch.tensor([probe.response])], 1)
        heard = {name: inputs[name] for name in ("input_features", "feature_attention_mask")}
        with torch.no_grad():
            logits_SV: Tensor = whole(input_ids=ids, attention_mask=torch.ones_like(ids), **heard).logits[0]
        return logits_SV[-len(probe.response) - 1 : -1].float()
