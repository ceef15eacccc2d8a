"""Language models of the families that students have: hidden states, head, LoRA and decoding are those of transformers' own models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from speechkd.models.architectures import meta_causal_lm
from speechkd.models.language_model import LanguageModel
from speechkd.models.lora import LoraConfig, linear_layers, matching
from speechkd.models.pretrained import load_causal_lm

SIZES = {"vocab_size": 97, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4, "final_logit_softcapping": 2.0},
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **SIZES, **FAMILIES[request.param])).eval()
    for param in model.parameters():
        param.data += 0.2 * torch.randn(param.shape)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return folder, model


def test_states_and_logits_are_the_models_own(saved: tuple[Path, Any]) -> None:
    folder, model = saved
    ours = LanguageModel(load_causal_lm(str(folder), torch.float32)).eval()
    ids = torch.randint(1, 97, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0  # padding on the right
    with torch.no_grad():
        whole = model(ids, attention_mask=mask, output_hidden_states=True)
        states = ours.states(ours.embed(ids), mask, every_layer=True)
        assert len(states) == ours.layers + 1 == 4
        for mine, expected in zip(states, whole.hidden_states, strict=True):
            torch.testing.assert_close(mine[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.states(ours.embed(ids), mask)[0][mask.bool()], states[-1][mask.bool()])
        torch.testing.assert_close(ours.logits(states[-1][mask.bool()]), whole.logits[mask.bool()].float(), atol=1e-4, rtol=1e-5)
        lens = ours.final_norm(states[1][mask.bool()])
        torch.testing.assert_close(lens, model.base_model.norm(whole.hidden_states[1])[mask.bool()], atol=1e-4, rtol=1e-5)


def test_decoding_from_embeddings_is_the_models_own(saved: tuple[Path, Any]) -> None:
    folder, model = saved
    ours = LanguageModel(load_causal_lm(str(folder), torch.float32)).eval()
    ids = torch.randint(1, 97, (1, 6), generator=torch.Generator().manual_seed(2))
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": 0}
    mask = torch.ones_like(ids)
    with torch.no_grad():
        theirs = model.generate(ids, attention_mask=mask, **options)[0, 6:]
        mine = ours.lm.generate(inputs_embeds=ours.embed(ids), attention_mask=mask, **options)[0]
    assert mine.tolist() == theirs.tolist()


def test_lora_finds_its_layers_and_a_dry_run_the_same_sizes(saved: tuple[Path, Any]) -> None:
    folder, model = saved
    planned: Any = meta_causal_lm(str(folder))
    assert sum(p.numel() for p in planned.parameters()) == sum(p.numel() for p in model.parameters())
    names = matching(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], linear_layers(planned))
    assert len(names) == 7 * 3
    ours = LanguageModel(load_causal_lm(str(folder), torch.float32))
    ours.add_lora(names, LoraConfig(targets=["q_proj"]))
    ids = torch.randint(1, 97, (1, 5))
    with torch.no_grad():  # B is zero at the start
        states = ours.states(ours.embed(ids), torch.ones_like(ids))[-1][0]
        torch.testing.assert_close(ours.logits(states), model(ids).logits[0].float(), atol=1e-4, rtol=1e-5)


def test_attention_weights_of_the_last_block_can_be_had(saved: tuple[Path, Any]) -> None:
    ours = LanguageModel(load_causal_lm(str(saved[0]), torch.float32)).eval()
    ours.lm.set_attn_implementation("eager")
    seen: list[Any] = []
    hook = ours.last_attention().register_forward_hook(lambda m, i, o: seen.append(o[1]))
    ids = torch.randint(1, 97, (1, 5))
    with torch.no_grad():
        ours.states(ours.embed(ids), torch.ones_like(ids))
    hook.remove()
    assert seen[0].shape == (1, 4, 5, 5)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(1, 4, 5))
