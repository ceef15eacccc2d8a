"""Writes an export as the folder of another engine, loads that by the engine's own classes, and compares the logits."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import numpy as np
from torch import Tensor

from speechkd.core.errors import DataError, InputError
from speechkd.core.files import write_json, write_text
from speechkd.engine.export import PROBE_TOLERANCE, put_in_place
from speechkd.models.encoder_families import SAMPLE_RATE
from speechkd.models.exported import DistilledStudent, load_student, read_manifest
from speechkd.models.formats import FORMATS, Probe, check_fits
from speechkd.models.formats.chat_template import QUESTION
from speechkd.models.pretrained import quietly

FACTS = "speechkd.json"
"""File that says which student a foreign folder holds"""
ANSWER = "Someone says hello, twice."


def check_replaceable(out: Path) -> None:
    """Raises InputError where `out` holds something that no export in a foreign format wrote."""
    if out.exists() and not (out / FACTS).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"`{out}` exists and is no export of another engine's format: name an empty folder, or remove it")


def write_foreign(out: Path, exported: Path, name: str, card: str) -> float | None:
    """Write the export in the folder `exported` (LoRA merged) to `out` in the format `name`; returns the largest relative difference.

    None: no class here loads the format. `card`: the README's text. Raises InputError for a student that does not fit, or where `out` is
    something else; DataError where the logits of the engine's own classes differ from ours. Then `out` is left as it was.
    """
    check_replaceable(out)
    manifest, student = read_manifest(exported), load_student(exported)
    check_fits(name, student.student)
    form = FORMATS.get(name)()
    fresh = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    with quietly():
        form.write(student, fresh)
    write_text(fresh / "README.md", card)
    probe = _probe(student, form.CLIP_SAMPLES)
    ours_NV = _logits(student, probe)
    del student
    gc.collect()  # one language model in memory at a time
    with quietly():
        theirs_NV = form.logits(fresh, manifest.student.dtype, probe)
    difference = None if theirs_NV is None else float((theirs_NV[:, : ours_NV.shape[1]] - ours_NV).abs().max() / ours_NV.abs().max())
    if difference is not None and not difference <= PROBE_TOLERANCE[manifest.student.dtype]:
        raise DataError(f"in the format `{name}` the student's logits differ by {difference:.3g} of the largest: {fresh}")
    facts = {"format": name, "step": manifest.step, "recipe_digest": manifest.recipe_digest, "checkpoint": manifest.checkpoint}
    write_json(fresh / FACTS, {**facts, "logits_difference": difference})
    put_in_place(fresh, out)
    return difference


def _probe(student: DistilledStudent, multiple: int) -> Probe:
    """A second of gliding harmonics, or as much as the encoder hears, in clips of a length for which positions agree."""
    samples = int(min(1.0, student.features.window_seconds) * SAMPLE_RATE) // multiple * multiple
    time_T = np.arange(samples) / SAMPLE_RATE
    phase_T = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 1.5 * time_T)) / SAMPLE_RATE
    samples_KT = [0.1 * np.sin(k * phase_T) / k for k in range(1, 8)]
    return Probe(np.sum(samples_KT, 0).astype(np.float32), QUESTION, student.prompt.answer(ANSWER))


def _logits(student: DistilledStudent, probe: Probe) -> Tensor:
    batch = student.batch([probe.samples_T], [probe.question], [probe.response])
    return student.logits(batch, batch.response_T - 1).float()
