"""Ultravox's folder against its published equations, written here from its files alone: transformers has no class for it.

Source: fixie-ai/ultravox (ultravox_model.py, ultravox_processing.py) and vLLM's models/ultravox.py, whose names and sizes these are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, pad, silu

from speechkd.core.errors import InputError
from speechkd.core.files import read_json
from speechkd.engine.foreign import write_foreign
from speechkd.models.exported import load_student
from speechkd.models.formats import Probe, check_fits
from speechkd.models.student import meta_student
from speechkd.models.student_config import StudentConfig
from tests.engine.foreign import STANDINS, exported, probe_of

MID = {"kind": "ultravox", "stack": 5, "hidden": 24}


def config_of(**keys: Any) -> StudentConfig:
    plain = {"projector": MID, "encoder_states": "last", "encoder_window": "clip", "dtype": "float32"}
    return StudentConfig.model_validate(STANDINS | plain | keys)


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def reference(folder: Path, probe: Probe) -> Tensor:
    """Logits that predict the probe's response, of the model that the folder's files describe."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config, tensors = read_json(folder / "config.json"), load_file(folder / "model.safetensors")
    assert config["model_type"] == "ultravox" and config["projector_act"] == "swiglu" and config["num_projector_layers"] == 0
    tower: Any = WhisperEncoder(WhisperConfig(**config["audio_config"])).eval()
    tower.load_state_dict(part(tensors, "audio_tower."))
    language_model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**config["text_config"])).eval()
    language_model.load_state_dict(part(tensors, "language_model."))
    weights, stack = part(tensors, "multi_modal_projector."), config["stack_factor"]

    def rms(x: Tensor, name: str) -> Tensor:
        weight = weights.get(f"{name}.weight")
        return x if weight is None else x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight

    assert (("ln_mid.weight" in weights), ("ln_post.weight" in weights)) == (config["projector_ln_mid"], not config["projector_ln_mid"])
    settings: dict[str, Any] = {"padding": "longest", "pad_to_multiple_of": 160, "return_attention_mask": True, "return_tensors": "pt"}
    heard = WhisperFeatureExtractor.from_pretrained(folder)(probe.samples_T, sampling_rate=16_000, **settings)
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder)
    asked = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": probe.question}]}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    columns = int(heard["attention_mask"].sum())
    positions = -(-columns // (2 * stack))
    ids = torch.tensor(
        [[*tokenizer(text.replace("<|audio|>", "<|audio|>" * positions), add_special_tokens=False)["input_ids"], *probe.response]]
    )
    assert int((ids == config["audio_token_index"]).sum()) == positions and config["audio_token_index"] < config["vocab_size"]
    with torch.no_grad():
        x = gelu(tower.conv2(gelu(tower.conv1(heard["input_features"])))).transpose(1, 2)
        x = x + tower.embed_positions.weight[: x.shape[1]]
        for block in tower.layers:
            x = block(x, None)
        x = tower.layer_norm(x)
        stacked = pad(x, (0, 0, 0, -x.shape[1] % stack)).reshape(1, -1, stack * x.shape[2])
        up, gate = (rms(stacked, "ln_pre") @ weights["linear_1.weight"].T).chunk(2, -1)
        audio = rms(rms(up * silu(gate), "ln_mid") @ weights["linear_2.weight"].T, "ln_post")
        embeddings = language_model.get_input_embeddings()(ids)
        embeddings[ids == config["audio_token_index"]] = audio[0, :positions]
        logits: Tensor = language_model(inputs_embeds=embeddings).logits[0]
    return logits[-len(probe.response) - 1 : -1]


VARIANTS: dict[str, dict[str, Any]] = {
    "mid": {"lora": {"r": 2, "targets": ["q_proj", "down_proj"]}},
    "post": {"projector": {**MID, "norm": "post", "stack": 8}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_folder_is_the_student_by_ultravoxs_equations(name: str, tmp_path: Path) -> None:
    own = exported(tmp_path / "own", config_of(**VARIANTS[name]))
    assert write_foreign(tmp_path / "out", own, "ultravox", "card") is None
    student = load_student(own)
    for samples in (320 * 41, 320 * 100):  # the last stack is not whole
        probe, ours_NV = probe_of(student, samples)
        theirs_NV = reference(tmp_path / "out", probe)[:, : ours_NV.shape[1]]
        assert float((theirs_NV - ours_NV).abs().max()) <= 1e-4 < 0.1 < float(ours_NV.abs().max())
    probe, ours_NV = probe_of(student, 320 * 41 + 100)  # not padded to 20 ms: as many positions, but another last frame
    assert float((reference(tmp_path / "out", probe)[:, : ours_NV.shape[1]] - ours_NV).abs().max()) > 0.01


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "silence heard": ({"encoder_window": "full"}, "must hear the clip alone"),
    "layers summed": ({"encoder_states": "weighted_sum"}, "sums encoder layers"),
    "another projector": ({"projector": {"kind": "mlp_stack"}}, "its projector is a MlpStack"),
    "LoRA on audio": ({"lora": {"r": 2, "targets": ["q_proj"], "scope": "audio"}}, "acts at audio positions only"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_student_that_is_no_ultravox_is_told_which_part_differs(name: str) -> None:
    changes, why = MISFITS[name]
    with pytest.raises(InputError, match=f"^this student is no `ultravox`: .*{why}.*; formats that fit it: speechkd \\(--format\\)$"):
        check_fits("ultravox", meta_student(config_of(**changes)))


def test_a_student_of_ultravoxs_kind_is_told_that_it_fits_there() -> None:
    with pytest.raises(InputError, match="its encoder is `whisper`.*; formats that fit it: speechkd, ultravox"):
        check_fits("qwen2_audio", meta_student(config_of()))
