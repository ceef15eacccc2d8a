"""Ultravox's folder, as vLLM's `UltravoxModel` reads it: one config.json, one set of tensors, tokenizer and feature settings.

A student fits that hears as Ultravox does: a Whisper that attends to the clip alone (`encoder_window: clip`), its last state, the projector
`ultravox`; any language model. transformers has no class for it, and vLLM prepares its inputs with code from fixie-ai's repositories.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor

from speechkd.core.files import write_json
from speechkd.models.encoder import LastLayer
from speechkd.models.exported import DistilledStudent
from speechkd.models.formats import Probe, audio_lora_only
from speechkd.models.formats.chat_template import chat_template, check_chat
from speechkd.models.formats.parts import language_model_tensors, save_generation_config, text_config, tokenizer_with
from speechkd.models.projectors.ultravox import UltravoxProjector
from speechkd.models.student import Student

AUDIO = "<|audio|>"
"""Stands for a clip"""


class UltravoxFormat:
    """Writes Ultravox's folder."""

    CLIP_SAMPLES: ClassVar[int] = 320
    USAGE: ClassVar[str] = """\
A folder as Ultravox's. LoRA is merged; all weights are here.

vLLM prepares a clip with Ultravox's own processor, which is code from its repositories, not ours: copy `ultravox_processing.py` and
`ultravox_config.py` of an Ultravox 0.5 or later that you trust beside this file, and serve with that code allowed:

```bash
vllm serve path/to/this/folder --trust-remote-code
```

**Pad every clip to whole 20 ms** with silence (a multiple of 320 samples at 16 kHz): otherwise the last frame is computed with half of it
missing. Then `speechkd verify` says whether the server answers as the student does."""

    def misfit(self, student: Student) -> str | None:
        """See `ExportFormat`."""
        kind = student.encoder.encoder.config.model_type
        if kind != "whisper":
            return f"its encoder is `{kind}` (student.encoder), must be a Whisper"
        if not student.encoder.hearing.alone:
            return "its Whisper hears the silence behind a clip (student.encoder_window), must hear the clip alone (`clip`)"
        if not isinstance(student.mix, LastLayer):
            return "it sums encoder layers (student.encoder_states), must take the last"
        if not isinstance(student.projector, UltravoxProjector):
            return f"its projector is a {type(student.projector).__name__} (student.projector.kind), must be `ultravox`"
        return audio_lora_only(student)

    def write(self, student: DistilledStudent, folder: Path) -> None:
        """See `ExportFormat`."""
        from huggingface_hub import save_torch_state_dict

        tokenizer = tokenizer_with(student, [AUDIO])
        tokenizer.chat_template = chat_template(student.prompt, AUDIO)
        check_chat(student, tokenizer, tokenizer.chat_template, AUDIO)
        mark: int = tokenizer.convert_tokens_to_ids(AUDIO)
        encoder, projector = student.student.encoder.encoder, student.student.projector
        dtype = next(encoder.parameters()).dtype
        tensors = {f"audio_tower.{name}": tensor for name, tensor in encoder.state_dict().items()}
        tensors |= {f"multi_modal_projector.{name}": tensor for name, tensor in projector.published().items()}
        tensors |= {f"language_model.{name}": tensor for name, tensor in language_model_tensors(student, mark + 1).items()}
        save_torch_state_dict({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, folder)
        text = text_config(student, mark + 1)
        config = {
            "architectures": ["UltravoxModel"],
            "model_type": "ultravox",
            "audio_config": encoder.config.to_dict(),
            "text_config": text,
            "audio_model_id": None,
            "text_model_id": None,
            "audio_token_index": mark,
            "hidden_size": projector.linear_1.shape[0],
            "stack_factor": projector.stack,
            "norm_init": 0.4,
            "projector_act": "swiglu",
            "projector_ln_mid": projector.norm == "mid",
            "num_projector_layers": 0,
            "ignore_index": -100,
            "vocab_size": text["vocab_size"],
            "dtype": str(dtype).removeprefix("torch."),
        }
        write_json(folder / "config.json", config)
        processor = {"audio_placeholder": AUDIO, "encoder_ds_factor": 2, "stack_factor": projector.stack}
        auto = {"AutoProcessor": "ultravox_processing.UltravoxProcessor"}
        write_json(folder / "processor_config.json", {"processor_class": "UltravoxProcessor", "auto_map": auto, **processor})
        tokenizer.save_pretrained(folder)
        student.features.extractor.save_pretrained(folder)
        save_generation_config(student, folder, [mark])

    def logits(self, folder: Path, dtype: str, probe: Probe) -> Tensor | None:
        """None: no class is here that loads it. `test_foreign_ultravox.py` compares the folder with the published equations."""
        return None
