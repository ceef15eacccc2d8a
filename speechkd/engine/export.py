"""Writes a checkpoint as an export folder that can be loaded without the run, then loads it again and compares."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from speechkd.core.errors import DataError, InputError
from speechkd.core.files import fsync_folder, publishing, sha256_file, write_json, write_text
from speechkd.core.types import Batch, ClipTable, TeacherSignals
from speechkd.data.training_range import RANGE
from speechkd.models.exported import (
    FORMAT,
    LLM_FOLDER,
    LORA_FOLDER,
    MANIFEST,
    TEMPLATE,
    TOKENIZER,
    WEIGHTS,
    ExportManifest,
    Fingerprints,
    load_features,
    load_student,
    load_tokenizer,
    read_manifest,
    trained_tensors,
)
from speechkd.models.lora import CONFIG as ADAPTER_CONFIG
from speechkd.models.lora import PEFT_PREFIX
from speechkd.models.lora import WEIGHTS as ADAPTER
from speechkd.models.lora import LoraConfig
from speechkd.models.lora import merge as merge_lora
from speechkd.models.lora import peft_config, peft_names
from speechkd.models.model_folder import fingerprint
from speechkd.models.pretrained import load_causal_lm, load_encoder
from speechkd.models.student import LLM, PROJECTOR, Student, load_trainable
from speechkd.models.student_config import StudentConfig

PROBE_TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
"""Largest logit difference allowed between training and export, as a share of the largest logit: what the precision itself rounds away.

Sums run in another order under ZeRO-3; a float32 logit of 19 is 1.6e-5 from its float64 value on either side (measured)."""


def write_export(
    out: Path,
    *,
    tensors: Mapping[str, Tensor],
    student: StudentConfig,
    fingerprints: Fingerprints,
    merge: bool,
    prompt: str,
    step: int,
    recipe_digest: str,
    checkpoint: str,
    card: str,
    probe: Path | None,
    training_range: Path | None = None,
) -> float | None:
    """Write the folder at `out` (replacing an earlier export), read it back and compare; returns the probe's relative difference.

    `tensors`: the checkpoint's trained tensors, float32. `student`, `fingerprints`: as the manifest is to hold them, of the frozen models
    that training used. `card`: the model card's text. `probe`: the run's probe batch with the logits that training computed.
    `merge` folds LoRA into the language model, which then is part of the export. `training_range`: the run's, where it has one.
    Raises InputError where `out` is something else, DataError if what comes back differs; then `out` is left as it was.
    """
    if out.exists() and not (out / MANIFEST).is_file() and any(out.iterdir()):
        raise InputError(f"`{out}` exists and is no export: name an empty folder, or remove it")
    empty = sorted(name for name, tensor in tensors.items() if tensor.numel() == 0 or not tensor.isfinite().all())
    if empty or not tensors:
        raise DataError(f"{checkpoint}: trained tensors are empty or not finite: {', '.join(empty) or 'none at all'}")
    fresh = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    load_tokenizer(student.llm).save_pretrained(fresh / TOKENIZER)
    load_features(student.encoder).extractor.save_pretrained(fresh)
    write_text(fresh / TEMPLATE, prompt)
    write_text(fresh / "README.md", card)
    if training_range is not None and training_range.is_file():
        shutil.copyfile(training_range, fresh / RANGE)
    wanted = dict(tensors)
    if merge and student.lora is not None:
        wanted = _write_merged(fresh / LLM_FOLDER, tensors, student)
        student = student.model_copy(update={"llm": LLM_FOLDER, "lora": None})
        fingerprints = fingerprints.model_copy(update={"llm": fingerprint(str(fresh / LLM_FOLDER))})
    elif student.lora is not None:
        _write_adapter(fresh / LORA_FOLDER, tensors, student.lora, student.llm)
    outside_llm = {name: tensor.contiguous() for name, tensor in wanted.items() if not name.startswith(LLM)}
    save_file(outside_llm, fresh / WEIGHTS, {"format": "pt"})
    manifest = ExportManifest(
        format=FORMAT,
        student=student,
        fingerprints=fingerprints,
        merged=merge,
        step=step,
        recipe_digest=recipe_digest,
        checkpoint=checkpoint,
        files={str(path.relative_to(fresh)): sha256_file(path) for path in sorted(fresh.rglob("*")) if path.is_file()},
    )
    write_json(fresh / MANIFEST, manifest.model_dump(mode="json"))
    difference = _compare(fresh, wanted, probe, student.dtype)
    write_json(fresh / MANIFEST, manifest.model_copy(update={"probe_difference": difference}).model_dump(mode="json"))
    put_in_place(fresh, out)
    return difference


def put_in_place(fresh: Path, out: Path) -> None:
    """Make the whole folder `fresh` the folder `out`, in place of an older one."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    fsync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write_adapter(folder: Path, tensors: Mapping[str, Tensor], lora: LoraConfig, base: str) -> None:
    """The LoRA of the language model as PEFT reads it. Raises DataError for a B that is zero throughout: nothing was trained."""
    adapter = {name: tensor.contiguous() for name, tensor in peft_names(tensors, LLM).items()}
    if not adapter:
        return  # LoRA on the projector alone stands beside the projector
    if not any(tensor.any() for name, tensor in adapter.items() if ".lora_B." in name):
        raise DataError("every lora_B is zero: nothing was trained")
    folder.mkdir()
    save_file(adapter, folder / ADAPTER, {"format": "pt"})
    targets = {name.removeprefix(PEFT_PREFIX).partition(".lora_")[0] for name in adapter}
    write_json(folder / ADAPTER_CONFIG, peft_config(lora, targets, base))


def _write_merged(folder: Path, tensors: Mapping[str, Tensor], config: StudentConfig) -> dict[str, Tensor]:
    """Fold LoRA into the language model and save that to `folder`; returns layer mix and projector, LoRA folded in there too."""
    dtype = getattr(torch, config.dtype)
    student = Student(load_encoder(config.encoder, dtype), load_causal_lm(config.llm, dtype), config)
    load_trainable(student, dict(tensors))
    merge_lora(student)
    student.llm.lm.save_pretrained(folder)
    load_tokenizer(config.llm).save_pretrained(folder)  # the folder is a model like any other
    return {name: p.detach() for name, p in student.named_parameters() if name.startswith((PROJECTOR, "mix."))}


def _compare(folder: Path, tensors: Mapping[str, Tensor], probe: Path | None, dtype: str) -> float | None:
    """Load the export again: its tensors must be `tensors`, its logits the probe's. Returns their largest relative difference."""
    back = trained_tensors(folder, read_manifest(folder))
    for name, tensor in tensors.items():
        same = name in back and torch.equal(back[name], tensor)
        if not same:
            raise DataError(f"{folder}: `{name}` is not what was written")
    student = load_student(folder)
    if probe is None or not probe.is_file():
        return None
    if dtype == "bfloat16":
        _round(student.student, tensors)
    saved = load_file(probe)
    logits_TV = student.logits(probe_batch(saved), saved["predict_T"])
    difference = float((logits_TV - saved["logits_TV"]).abs().max() / saved["logits_TV"].abs().max())
    if not difference <= PROBE_TOLERANCE[dtype]:
        raise DataError(f"the export's logits differ from training's by {difference:.3g} (allowed {PROBE_TOLERANCE[dtype]:g}): {folder}")
    return difference


@torch.no_grad()
def _round(student: nn.Module, trained: Mapping[str, Tensor]) -> None:
    """Give what trained the bfloat16 values that training's forward had.

    The master weights, which an export keeps, are finer; where steps are smaller than bfloat16's spacing, the roundings of a whole matrix
    all go one way at first (a projector 6400 wide: 5.6 % of the logits after two steps, 0.9 % once rounded, measured).
    """
    for name, param in student.named_parameters():
        if name in trained:
            param.copy_(param.to(torch.bfloat16))


PROBE_TENSORS = (
    "features_BMT",
    "ids_BS",
    "mask_BS",
    "audio_to_A",
    "audio_from_A",
    "response_T",
    "mask_T",
    "stream_T",
    "first_T",
    "stream_A",
)
PROBE_CLIPS = ("stream_C", "frames_C", "mask_CQ", "language_C", "words_CN", "words_mask_CN")


def probe_batch(saved: Mapping[str, Tensor]) -> Batch:
    """The batch stored beside the probe's logits. Raises InputError for one that an earlier version wrote."""
    if missing := [name for name in (*PROBE_TENSORS, *PROBE_CLIPS) if name not in saved]:
        raise InputError(f"the run's probe lacks `{missing[0]}`: an earlier version wrote it; train and export under another `name`")
    tensors: dict[str, Any] = {name: saved[name] for name in PROBE_TENSORS}
    clips = ClipTable(**{name: saved[name] for name in PROBE_CLIPS})
    return Batch(**tensors, clips=clips, views={}, signals=TeacherSignals(), examples=int(saved["ids_BS"].shape[0]), seconds=0.0)


def save_probe(path: Path, batch: Batch, predict_T: Tensor, logits_TV: Tensor) -> None:
    """Store a probe batch and the logits that training computes for it."""
    tensors = {name: getattr(batch, name) for name in PROBE_TENSORS} | {name: getattr(batch.clips, name) for name in PROBE_CLIPS}
    tensors |= {"predict_T": predict_T, "logits_TV": logits_TV.float()}
    with publishing(path) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)
