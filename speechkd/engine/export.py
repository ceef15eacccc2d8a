"""A checkpoint as a folder that stands on its own: trained tensors, tokenizer, features, prompt, model card; read back and compared."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from speechkd.core.errors import DataError, InputError
from speechkd.core.files import fsync_folder, sha256_file, write_json, write_text
from speechkd.models.exported import (
    FORMAT,
    MANIFEST,
    TEMPLATE,
    TOKENIZER,
    WEIGHTS,
    Base,
    ExportManifest,
    load_features,
    load_student,
    load_tokenizer,
)

PROBE_TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
"""Largest logit difference allowed between training and export, as a share of the largest logit: what the precision itself rounds away.

Sums run in another order under ZeRO-3; a float32 logit of 19 is 1.6e-5 from its float64 value on either side (measured)."""


def write_export(
    out: Path,
    *,
    tensors: Mapping[str, Tensor],
    encoder: Base,
    llm: Base,
    projector: dict[str, Any],
    normalise_layers: bool,
    dtype: str,
    prompt: str,
    step: int,
    recipe_digest: str,
    checkpoint: str,
    card: str,
    probe: Path | None,
) -> float | None:
    """Write the folder at `out` (replacing an earlier export), read it back and compare; returns the probe's relative difference.

    `tensors`: the checkpoint's trained tensors, float32. `card`: the model card's text. `probe`: the run's probe batch with the
    logits that training saw. Raises DataError if what comes back differs; then `out` is left as it was.
    """
    if out.exists() and not (out / MANIFEST).is_file() and any(out.iterdir()):
        raise InputError(f"`{out}` exists and is no export: name an empty folder, or remove it")
    empty = sorted(name for name, tensor in tensors.items() if tensor.numel() == 0 or not tensor.isfinite().all())
    if empty or not tensors:
        raise DataError(f"{checkpoint}: trained tensors are empty or not finite: {', '.join(empty) or 'none at all'}")
    fresh = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, fresh / WEIGHTS, {"format": "pt"})
    load_tokenizer(llm.name).save_pretrained(fresh / TOKENIZER)
    load_features(encoder.name).extractor.save_pretrained(fresh)
    write_text(fresh / TEMPLATE, prompt)
    write_text(fresh / "README.md", card)
    manifest = ExportManifest(
        format=FORMAT,
        encoder=encoder,
        llm=llm,
        projector=projector,
        normalise_layers=normalise_layers,
        dtype=dtype,
        step=step,
        recipe_digest=recipe_digest,
        checkpoint=checkpoint,
        files={str(path.relative_to(fresh)): sha256_file(path) for path in sorted(fresh.rglob("*")) if path.is_file()},
    )
    write_json(fresh / MANIFEST, manifest.model_dump(mode="json"))
    difference = _compare(fresh, tensors, probe, dtype)
    write_json(fresh / MANIFEST, manifest.model_copy(update={"probe_difference": difference}).model_dump(mode="json"))
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    fsync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)
    return difference


def _compare(folder: Path, tensors: Mapping[str, Tensor], probe: Path | None, dtype: str) -> float | None:
    back = load_file(folder / WEIGHTS)
    for name, tensor in tensors.items():
        same = name in back and torch.equal(back[name], tensor)
        if not same:
            raise DataError(f"{folder / WEIGHTS}: `{name}` is not what was written")
    student = load_student(folder)
    if probe is None or not probe.is_file():
        return None
    saved = load_file(probe)
    logits_TV = student.logits(probe_batch(saved), saved["predict_T"])
    difference = float((logits_TV - saved["logits_TV"]).abs().max() / saved["logits_TV"].abs().max())
    if not difference <= PROBE_TOLERANCE[dtype]:
        raise DataError(f"the export's logits differ from training's by {difference:.3g} (allowed {PROBE_TOLERANCE[dtype]:g}): {folder}")
    return difference


def probe_batch(saved: Mapping[str, Tensor]) -> Any:
    """The batch stored beside the probe's logits."""
    from speechkd.core.types import Batch

    names = ("features_BMT", "ids_BS", "mask_BS", "audio_to_A", "audio_from_A", "response_T", "mask_T")
    return Batch(**{name: saved[name] for name in names}, signals={}, examples=int(saved["ids_BS"].shape[0]), seconds=0.0)


def save_probe(path: Path, batch: Any, predict_T: Tensor, logits_TV: Tensor) -> None:
    """Store a probe batch and the logits that training computes for it."""
    names = ("features_BMT", "ids_BS", "mask_BS", "audio_to_A", "audio_from_A", "response_T", "mask_T")
    tensors = {name: getattr(batch, name).cpu().contiguous() for name in names}
    tensors |= {"predict_T": predict_T.cpu().contiguous(), "logits_TV": logits_TV.float().cpu().contiguous()}
    from speechkd.core.files import publishing

    with publishing(path) as temporary:
        save_file(tensors, temporary)
