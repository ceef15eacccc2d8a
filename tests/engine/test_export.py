"""An export says how its student hears, and what is read back is that student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from speechkd.core.files import read_json, write_json
from speechkd.engine.export import save_probe, write_export
from speechkd.engine.loading import load_causal_lm, load_encoder
from speechkd.losses.positions import predicting_positions
from speechkd.models.collate import Row
from speechkd.models.encoder import EncoderStates
from speechkd.models.exported import MANIFEST, Base, load_features, load_student, make_collator, read_manifest
from speechkd.models.model_folder import fingerprint
from speechkd.models.projectors import PROJECTORS
from speechkd.models.student import Student

ROOT = Path(__file__).parents[2]
ENCODER, LLM = str(ROOT / "standins/encoder"), str(ROOT / "standins/llm")


def exported(out: Path, tensors: dict[str, torch.Tensor], projector: Any, mix: EncoderStates, **changes: Any) -> float | None:
    settings: dict[str, Any] = {
        "encoder": Base(name=ENCODER, fingerprint=fingerprint(ENCODER)),
        "llm": Base(name=LLM, fingerprint=fingerprint(LLM)),
        "projector": projector.model_dump(mode="json"),
        "normalise_layers": False,
        "lora": None,
        "merge": False,
        "dtype": "float32",
        "prompt": (ROOT / "shards/prompts/meta_prompt.j2").read_text(encoding="utf-8"),
        "step": 1,
        "recipe_digest": "",
        "checkpoint": "step_1",
        "card": "",
        "probe": None,
    }
    return write_export(out, tensors=tensors, mix=mix, **(settings | changes))


@pytest.mark.parametrize("mix", ["weighted_sum", "last"])
def test_the_mix_is_part_of_an_export(tmp_path: Path, mix: EncoderStates) -> None:
    torch.manual_seed(0)
    config = PROJECTORS.get("linear").Config.model_validate({"kind": "linear", "pool": 5})
    student = Student(load_encoder(ENCODER, torch.float32), load_causal_lm(LLM, torch.float32), config, mix=mix)
    if mix == "weighted_sum":
        student.mix.logits_L.data.normal_()
    exported(tmp_path / "out", {name: p.detach().clone() for name, p in student.trainable()}, config, mix)
    written = tmp_path / "out" / MANIFEST
    write_json(written, {**read_json(written), "metadata_fields": []})  # as the first exports had it
    assert read_manifest(tmp_path / "out").mix == mix
    back = load_student(tmp_path / "out").student
    states = tuple(torch.randn(1, 20, student.encoder.width) for _ in range(student.encoder.layers))
    torch.testing.assert_close(back.projector(back.mix(states)), student.projector(student.mix(states)))
    assert any(name.startswith("mix.") for name, _ in back.trainable()) == (mix == "weighted_sum")


@torch.no_grad()
def test_an_export_is_compared_with_a_bfloat16_run_as_that_run_rounded_it(tmp_path: Path) -> None:
    """Master weights a quarter of a spacing above what the forward had, all one way, as after a first step smaller than that."""
    torch.manual_seed(0)
    config = PROJECTORS.get("mlp_stack").Config.model_validate({"kind": "mlp_stack", "stack": 5, "hidden": 6400})
    student = Student(load_encoder(ENCODER, torch.bfloat16), load_causal_lm(LLM, torch.bfloat16), config, mix="last").to(torch.bfloat16)
    collate = make_collator(student, load_features(ENCODER))
    batch = collate([Row([5, 3, 9], [8, 7], [4, 6, 10, 11], torch.randn(16_000).numpy())])
    predict_T = predicting_positions(batch.response_T)
    logits_TV = student.llm.logits(student(batch, predict_T))
    save_probe(tmp_path / "probe.safetensors", batch, predict_T, logits_TV)
    fine = {name: p.float() + 0.24 * (p != 0) * 2.0 ** (torch.frexp(p.float()).exponent - 8) for name, p in student.trainable()}
    assert all(torch.equal(fine[name].bfloat16(), p) for name, p in student.trainable())
    difference = exported(tmp_path / "out", fine, config, "last", dtype="bfloat16", probe=tmp_path / "probe.safetensors")
    as_written = load_student(tmp_path / "out").logits(batch, predict_T)
    assert difference is not None and difference < 0.02
    assert float((as_written - logits_TV).abs().max() / logits_TV.abs().max()) > 2 * difference
