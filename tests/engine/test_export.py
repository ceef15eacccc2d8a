"""An export says how its student hears, and what is read back is that student."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speechkd.core.files import read_json, write_json
from speechkd.engine.export import write_export
from speechkd.engine.loading import load_causal_lm, load_encoder
from speechkd.models.encoder import Mixed
from speechkd.models.exported import MANIFEST, Base, load_student, read_manifest
from speechkd.models.model_folder import fingerprint
from speechkd.models.projectors import PROJECTORS
from speechkd.models.student import Student

ROOT = Path(__file__).parents[2]
ENCODER, LLM = str(ROOT / "standins/encoder"), str(ROOT / "standins/llm")


@pytest.mark.parametrize("mix", ["all", "last"])
def test_the_mix_is_part_of_an_export(tmp_path: Path, mix: Mixed) -> None:
    torch.manual_seed(0)
    config = PROJECTORS.get("linear").Config.model_validate({"kind": "linear", "pool": 5})
    student = Student(load_encoder(ENCODER, torch.float32), load_causal_lm(LLM, torch.float32), config, mix=mix)
    if mix == "all":
        student.mix.logits_L.data.normal_()
    write_export(
        tmp_path / "out",
        tensors={name: p.detach().clone() for name, p in student.trainable()},
        encoder=Base(name=ENCODER, fingerprint=fingerprint(ENCODER)),
        llm=Base(name=LLM, fingerprint=fingerprint(LLM)),
        projector=config.model_dump(mode="json"),
        normalise_layers=False,
        mix=mix,
        lora=None,
        merge=False,
        dtype="float32",
        prompt=(ROOT / "shards/prompts/meta_prompt.j2").read_text(encoding="utf-8"),
        step=1,
        recipe_digest="",
        checkpoint="step_1",
        card="",
        probe=None,
    )
    written = tmp_path / "out" / MANIFEST
    write_json(written, {**read_json(written), "metadata_fields": []})  # as the first exports had it
    assert read_manifest(tmp_path / "out").mix == mix
    back = load_student(tmp_path / "out").student
    states = tuple(torch.randn(1, 20, student.encoder.width) for _ in range(student.encoder.layers))
    torch.testing.assert_close(back.projector(back.mix(states)), student.projector(student.mix(states)))
    assert any(name.startswith("mix.") for name, _ in back.trainable()) == (mix == "all")
