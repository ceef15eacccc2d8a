"""What the tests of other engines' formats share: students whose trained tensors are far from their start, and their own logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechkd.engine.export import write_export
from speechkd.models.exported import Fingerprints
from speechkd.models.formats import Probe
from speechkd.models.model_folder import fingerprint
from speechkd.models.pretrained import load_causal_lm, load_encoder
from speechkd.models.student import Student
from speechkd.models.student_config import StudentConfig

ROOT = Path(__file__).parents[2]
STANDINS = {"encoder": str(ROOT / "standins/encoder"), "llm": str(ROOT / "standins/llm")}
PROMPT = (ROOT / "shards/prompts/meta_prompt.j2").read_text(encoding="utf-8")
QUESTION, ANSWER = "Who speaks, and where?", "A man in a kitchen."


def exported(out: Path, config: StudentConfig) -> Path:
    """An export, LoRA merged, of a student whose trained tensors are far from their start."""
    torch.manual_seed(1)
    student = Student(load_encoder(config.encoder, torch.float32), load_causal_lm(config.llm, torch.float32), config)
    write_export(
        out,
        tensors={name: (p + 0.3 * torch.randn_like(p)).detach() for name, p in student.trainable()},
        student=config,
        fingerprints=Fingerprints(encoder=fingerprint(config.encoder), llm=fingerprint(config.llm)),
        merge=config.lora is not None,
        prompt=PROMPT,
        step=7,
        recipe_digest="",
        checkpoint="step_7",
        card="",
        probe=None,
    )
    return out


def probe_of(student: Any, samples: int) -> tuple[Probe, torch.Tensor]:
    """A noise clip with an answer, and the student's own logits."""
    clip = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    probe = Probe(clip, QUESTION, student.prompt.answer(ANSWER))
    batch = student.batch([clip], [QUESTION], [probe.response])
    return probe, student.logits(batch, batch.response_T - 1)
