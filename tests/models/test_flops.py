"""Operations of published models, on the meta device, beside torch's own counter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from speechkd.models.architectures import meta_causal_lm, meta_encoder
from speechkd.models.flops import llm_flops, student_flops
from speechkd.models.student import Student
from speechkd.models.student_config import StudentConfig

CONFIGS = Path(__file__).parents[2] / "pipelines/configs"
LORA = {"r": 16, "alpha": 32, "targets": ["q_proj", "v_proj", "down_proj"]}


def with_four_blocks(name: str, key: str, folder: Path) -> str:
    """A published configuration, of which four blocks are as good as all of them."""
    config = json.loads((CONFIGS / name / "config.json").read_text(encoding="utf-8"))
    config |= {key: 4} | ({"layer_types": config["layer_types"][:4]} if "layer_types" in config else {})
    home = folder / Path(name).name
    home.mkdir()
    (home / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(home)


def meta_student(encoder: str, llm: str, lora: bool) -> Student:
    projector = {"kind": "mlp_stack", "stack": 15, "hidden": 6400}
    config = StudentConfig(encoder=encoder, llm=llm, projector=projector, lora=LORA if lora else None)
    parts = meta_encoder(encoder, torch.bfloat16), meta_causal_lm(llm, torch.bfloat16)
    for part in parts:
        part.set_attn_implementation("eager")  # by plain products, which the counter sees
    with torch.device("meta"):
        return Student(*parts, config)


@pytest.mark.parametrize("lora", [False, True])
def test_a_published_student_costs_what_torch_counts(lora: bool, tmp_path: Path) -> None:
    """Whisper-large-v3 and Gemma2-9b, each with four of its blocks: each part within 2 %. Torch counts the masked half of scores, too."""
    encoder = with_four_blocks("openai/whisper-large-v3", "encoder_layers", tmp_path)
    student = meta_student(encoder, with_four_blocks("google/gemma-2-9b-it", "num_hidden_layers", tmp_path), lora)
    B, S, T, frames = 2, 256, 64, student.encoder.hearing.window
    ours = student_flops(student)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        states = student.encoder.encoder(torch.empty(B, 128, 2 * frames, dtype=torch.bfloat16, device="meta")).last_hidden_state
    assert ours.encoder(B, frames) == pytest.approx(counter.get_total_flops(), rel=0.02)
    with FlopCounterMode(display=False) as counter:
        audio = student.projector(states)
    forward = counter.get_total_flops()
    assert ours.projected * B * audio.shape[1] == pytest.approx(3 * forward, rel=0.02), "backward is twice forward"
    inputs = torch.empty(B, S, student.llm.width, dtype=torch.bfloat16, device="meta", requires_grad=True)
    mask = torch.empty(B, 1, S, S, dtype=torch.bfloat16, device="meta")
    places = torch.zeros(B, S, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        out = student.llm.lm.base_model(inputs_embeds=inputs, attention_mask=mask, position_ids=places, use_cache=False).last_hidden_state
        (out.flatten(0, 1)[:T] @ student.llm.head.weight.t()).sum().backward()
    cost = llm_flops(student.llm, backward=True)
    assert cost.of(B * S, 2 * B * S**2, T) == pytest.approx(counter.get_total_flops(), rel=0.02)
