"""Tiny speech models of the real architectures with random weights: a Qwen2-Audio and an exported student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from speechkd.engine.export import write_export
from speechkd.models.exported import Fingerprints, load_tokenizer
from speechkd.models.lora import LoraConfig
from speechkd.models.model_folder import fingerprint
from speechkd.models.pretrained import load_causal_lm, load_encoder
from speechkd.models.student import Student
from speechkd.models.student_config import StudentConfig

ROOT = Path(__file__).parents[2]
LLM = str(ROOT / "standins/llm")
TEMPLATE = (ROOT / "shards/prompts/meta_prompt.j2").read_text(encoding="utf-8").rstrip("\n")
MARKS = ["<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"]
SECONDS, FRAMES = 2, 100


def write_speech_llm(folder: Path, extra: tuple[str, ...] = ()) -> Path:
    """The stand-in's tokenizer with the marks of a clip added, saved as a real model is. `extra`: tokens before the marks."""
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor, WhisperFeatureExtractor

    tokenizer = load_tokenizer(LLM)
    tokenizer.add_special_tokens({"additional_special_tokens": [*extra, *MARKS]}, replace_extra_special_tokens=False)
    audio = {"num_mel_bins": 8, "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 20}
    text: dict[str, Any] = {"model_type": "qwen2", "vocab_size": len(tokenizer) + 5, "hidden_size": 24, "intermediate_size": 48}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    text |= {"initializer_range": 0.4, "max_position_embeddings": 512}  # far from uniform: answers differ, and do not repeat at once
    torch.manual_seed(0)
    number = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    config = Qwen2AudioConfig(
        audio_config=audio | {"max_source_positions": FRAMES, "init_std": 0.3}, text_config=text, audio_token_index=number
    )
    model = Qwen2AudioForConditionalGeneration(config).eval()
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        model.lm_head.weight[len(load_tokenizer(LLM)) :] = 0  # says only what a student can say
        model.model.multi_modal_projector.linear.weight.mul_(4)  # what is heard weighs as much as what is read
    model.save_pretrained(folder)
    features = WhisperFeatureExtractor(feature_size=8, chunk_length=SECONDS)
    Qwen2AudioProcessor(features, tokenizer, chat_template=tokenizer.chat_template).save_pretrained(folder)
    return folder


def write_student(out: Path, lora: LoraConfig | None = None, **changes: Any) -> Path:
    """An export with a random projector, and random LoRA if it is to have any."""
    encoder, projector = str(ROOT / "standins/encoder"), {"kind": "linear", "pool": 5}
    torch.manual_seed(0)
    config = StudentConfig(encoder=encoder, llm=LLM, projector=projector, lora=lora, dtype="float32")
    student = Student(load_encoder(encoder, torch.float32), load_causal_lm(LLM, torch.float32), config)
    tensors = {name: p.detach().clone() for name, p in student.trainable()}
    tensors["projector.linear.weight"] *= 3
    tensors |= {name: 0.3 * torch.randn_like(tensor) for name, tensor in tensors.items() if name.endswith("lora_B")}
    settings: dict[str, Any] = {
        "merge": False,
        "step": 1,
        "recipe_digest": "",
        "checkpoint": "step_1",
        "card": "",
        "probe": None,
        "prompt": TEMPLATE,
        **changes,
    }
    fingerprints = Fingerprints(encoder=fingerprint(encoder), llm=fingerprint(LLM))
    write_export(out, tensors=tensors, student=config, fingerprints=fingerprints, **settings)
    return out
