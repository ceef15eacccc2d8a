"""LoRA: one mask for everything, off means bit for bit as loaded, PEFT reads what is written, and targets name what they mean."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from speechkd.core.errors import InputError
from speechkd.models.lora import (
    CONFIG,
    WEIGHTS,
    LoraConfig,
    from_peft_names,
    linear_layers,
    lora_layers,
    matching,
    merge,
    peft_config,
    peft_names,
)
from speechkd.models.student import LLM, Student, lora_names
from speechkd.models.student_config import StudentConfig
from tests.contracts.tiny import V, encoder, llm

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def config_of(lora: LoraConfig | None, **projector: Any) -> StudentConfig:
    return StudentConfig(encoder="", llm="", projector=projector or {"kind": "mlp_stack", "stack": 5, "hidden": 12}, lora=lora)


def student(lora: LoraConfig | None, seed: int = 0) -> Student:
    torch.manual_seed(seed)
    made = Student(encoder(), llm(), config_of(lora)).eval()
    generator = torch.Generator().manual_seed(2)
    for layer in lora_layers(made).values():
        layer.lora_B.data = torch.randn(layer.lora_B.shape, generator=generator) * 0.3
    return made


def states(made: Student, ids_BS: torch.Tensor, **where: object) -> torch.Tensor:
    with torch.no_grad(), made.llm.switch.set(**where):  # type: ignore[arg-type]
        return made.llm.states(made.llm.embed(ids_BS), torch.ones_like(ids_BS))[0]


IDS = torch.randint(1, V, (2, 7), generator=torch.Generator().manual_seed(0))


def test_off_is_the_loaded_model_bit_for_bit_whatever_the_adapter_holds() -> None:
    plain, made = student(None), student(LoraConfig(r=2, targets=SEVEN))
    for layer in lora_layers(made).values():
        layer.lora_B.data.fill_(torch.inf)
    nowhere = torch.zeros_like(IDS, dtype=torch.bool)
    assert torch.equal(states(made, IDS, off=True), states(plain, IDS))
    assert torch.equal(states(made, IDS, positions_BS=nowhere), states(plain, IDS))


def test_on_some_positions_changes_nothing_before_them() -> None:
    plain, made = student(None), student(LoraConfig(r=2, targets=SEVEN, scope="audio"))
    audio_BS = torch.zeros_like(IDS, dtype=torch.bool)
    audio_BS[0, 3:5] = True
    ours, theirs = states(made, IDS, positions_BS=audio_BS), states(plain, IDS)
    assert torch.equal(ours[1], theirs[1]), "a row without audio"
    torch.testing.assert_close(ours[0, :3], theirs[0, :3], rtol=0, atol=1e-5)
    assert (ours[0, 3:] - theirs[0, 3:]).abs().max() > 1e-2


def test_masked_positions_give_the_adapter_no_gradient() -> None:
    made = student(LoraConfig(r=2, targets=["down_proj"]))
    with made.llm.switch.set(positions_BS=torch.zeros_like(IDS, dtype=torch.bool)):
        made.llm.states(made.llm.embed(IDS), torch.ones_like(IDS))[0].sum().backward()
    assert all(not layer.lora_B.grad.any() for layer in lora_layers(made).values() if layer.lora_B.grad is not None)


def test_peft_computes_the_same_from_the_files(tmp_path: Path) -> None:
    import peft

    config = LoraConfig(r=3, alpha=12, targets=["q_proj", "down_proj"])
    made = student(config)
    trained = {name: p.detach() for name, p in made.trainable()}
    adapter = peft_names(trained, LLM)
    assert from_peft_names(adapter, LLM) == {name: t for name, t in trained.items() if ".lora_" in name}
    save_file(adapter, tmp_path / WEIGHTS)
    names = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in adapter}
    (tmp_path / CONFIG).write_text(json.dumps(peft_config(config, names, "base")))
    base = student(None).llm.lm
    with torch.no_grad():
        ours = made.llm.logits(states(made, IDS).flatten(0, 1)).view(2, 7, V)
        before = base(IDS).logits
        theirs = peft.PeftModel.from_pretrained(base, tmp_path)(IDS).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (theirs - before).abs().max() > 0.1


def test_merged_is_the_same_function_without_adapters() -> None:
    made = student(LoraConfig(r=2, targets=SEVEN))
    merged = copy.deepcopy(made)
    merge(merged)
    assert not lora_layers(merged) and set(linear_layers(merged)) == set(linear_layers(student(None)))
    torch.testing.assert_close(states(merged, IDS), states(made, IDS), rtol=0, atol=1e-4)


def test_step_zero_is_the_loaded_model() -> None:
    torch.manual_seed(0)
    fresh = Student(encoder(), llm(), config_of(LoraConfig(r=2, targets=SEVEN))).eval()
    assert torch.equal(states(fresh, IDS), states(student(None), IDS))


def test_pl_distill_has_its_169_modules() -> None:
    """Qwen2-0.5B (24 blocks, seven layers each) and the one linear layer of the projector (arXiv 2602.01547, released configuration)."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    lora = LoraConfig(r=8, alpha=256, dropout=0.1, targets=[*SEVEN, "linear"])
    with torch.device("meta"):
        heads = {"encoder_attention_heads": 20, "encoder_ffn_dim": 5120}
        audio = WhisperEncoder(WhisperConfig(num_mel_bins=128, d_model=1280, encoder_layers=32, **heads))
        text = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=151936,
                hidden_size=896,
                intermediate_size=4864,
                num_hidden_layers=24,
                num_attention_heads=14,
                num_key_value_heads=2,
                tie_word_embeddings=True,
            )
        )
        made = Student(audio, text, config_of(lora, kind="linear", pool=2))
    assert len(lora_layers(made)) == 24 * 7 + 1 == 169
    assert "projector.linear" in lora_layers(made) and not any("encoder" in name or "lm_head" in name for name in lora_layers(made))
    assert lora_layers(made)["projector.linear"].scale == 32.0


def test_a_target_that_matches_nothing_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="`q_prj`.*did you mean `q_proj`"):
        student(LoraConfig(r=2, targets=["q_prj"]))
    made = student(None)
    assert lora_names(made, LoraConfig(targets=["layers.1.mlp.up_proj"])) == ["llm.lm.model.layers.1.mlp.up_proj"]
    assert matching(["b"], ["a.b", "ab", "b"]) == ["a.b", "b"]


def test_generating_with_plora_is_the_argmax_of_the_training_path() -> None:
    """The prefill has audio positions, what is generated after it has none; left padding moves the mask with its row."""
    from tests.contracts.tiny import Case, collator, distiller_of, rows

    case = Case({"response_ce": {}}, lora={"r": 2, "alpha": 8, "targets": SEVEN, "scope": "audio"})
    distiller = distiller_of(case).eval()
    made, make, found = distiller.student, collator(distiller, case), rows(case, 3, "")
    answers = made.generate(make([dataclasses.replace(row, response=()) for row in found]), 4, stop=V + 1)
    from speechkd.losses.positions import predicting_positions

    for row, answer in zip(found, answers, strict=True):
        batch = make([dataclasses.replace(row, response=answer, signals={})])
        with torch.no_grad():
            greedy = made.llm.logits(made(batch, predicting_positions(batch.response_T))).argmax(-1).tolist()
        assert greedy == answer and len(answer) == 4
