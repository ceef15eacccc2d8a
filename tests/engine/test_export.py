"""What an export says of its student, and that loading it gives that student; also exports of the old format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechkd.core.errors import InputError
from speechkd.core.files import read_json, write_json
from speechkd.data.training_range import RANGE, TrainingRange, read_range, write_range
from speechkd.engine.export import save_probe, write_export
from speechkd.engine.loading import load_causal_lm, load_encoder
from speechkd.losses.positions import predicting_positions
from speechkd.models.collate import Row
from speechkd.models.encoder import EncoderStates
from speechkd.models.exported import MANIFEST, Fingerprints, load_features, load_student, make_collator, read_manifest
from speechkd.models.model_folder import fingerprint
from speechkd.models.student import Student
from speechkd.models.student_config import StudentConfig

ROOT = Path(__file__).parents[2]
ENCODER, LLM = str(ROOT / "standins/encoder"), str(ROOT / "standins/llm")
FINGERPRINTS = Fingerprints(encoder=fingerprint(ENCODER), llm=fingerprint(LLM))


def config_of(**keys: Any) -> StudentConfig:
    plain = {"encoder": ENCODER, "llm": LLM, "projector": {"kind": "linear", "pool": 5}, "dtype": "float32"}
    return StudentConfig.model_validate(plain | keys)


def student_of(config: StudentConfig) -> Student:
    torch.manual_seed(0)
    dtype = getattr(torch, config.dtype)
    return Student(load_encoder(ENCODER, dtype), load_causal_lm(LLM, dtype), config).to(dtype)


def exported(out: Path, tensors: dict[str, torch.Tensor], config: StudentConfig, **changes: Any) -> float | None:
    settings: dict[str, Any] = {
        "merge": False,
        "prompt": (ROOT / "shards/prompts/meta_prompt.j2").read_text(encoding="utf-8"),
        "step": 1,
        "recipe_digest": "",
        "checkpoint": "step_1",
        "card": "",
        "probe": None,
    }
    return write_export(out, tensors=tensors, student=config, fingerprints=FINGERPRINTS, **(settings | changes))


def trained(student: Student) -> dict[str, torch.Tensor]:
    """What would be trained, far from how it was made."""
    return {name: (p + 0.3 * torch.randn_like(p)).detach() for name, p in student.trainable()}


def to_format_1(manifest: dict[str, Any]) -> dict[str, Any]:
    """`export.json` as versions before format 2 wrote it."""
    student, fingerprints = manifest.pop("student"), manifest.pop("fingerprints")
    kept = {name: student[name] for name in ("projector", "normalise_layers", "dtype", "lora")}
    mix = {"weighted_sum": "all", "last": "last"}[student["encoder_states"]]
    models = {part: {"name": student[part], "fingerprint": fingerprints[part]} for part in ("encoder", "llm")}
    return {**manifest, **kept, **models, "mix": mix, "format": "speechkd-student/1", "metadata_fields": []}


@pytest.mark.parametrize("states", ["weighted_sum", "last"])
def test_the_encoder_states_are_part_of_an_export(tmp_path: Path, states: EncoderStates) -> None:
    config = config_of(encoder_states=states, encoder_window="true" if states == "last" else "full")
    student = student_of(config)
    if states == "weighted_sum":
        student.mix.logits_L.data.normal_()
    exported(tmp_path / "out", {name: p.detach().clone() for name, p in student.trainable()}, config)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.format == "speechkd-student/2" and manifest.student == config and manifest.fingerprints == FINGERPRINTS
    back = load_student(tmp_path / "out").student
    assert back.encoder.hearing.whole == (states != "last"), "a student hears with the window that it was trained with"
    inputs = tuple(torch.randn(1, 20, student.encoder.width) for _ in range(student.encoder.layers))
    torch.testing.assert_close(back.projector(back.mix(inputs)), student.projector(student.mix(inputs)))
    assert any(name.startswith("mix.") for name, _ in back.trainable()) == (states == "weighted_sum")


VARIANTS: dict[str, dict[str, Any]] = {
    "weighted_sum": {"normalise_layers": True},
    "last": {"encoder_states": "last", "projector": {"kind": "mlp_stack", "stack": 4, "hidden": 16}},
    "lora": {"lora": {"r": 2, "targets": ["q_proj", "linear"], "scope": "audio"}},
    "merged": {"lora": {"r": 2, "targets": ["q_proj", "linear"]}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_an_export_of_format_1_is_the_same_student(name: str, tmp_path: Path) -> None:
    config, folder = config_of(**VARIANTS[name]), tmp_path / "out"
    exported(folder, trained(student_of(config)), config, merge=name == "merged")
    clips, questions = [np.random.default_rng(i).normal(0, 0.1, 16_000).astype(np.float32) for i in (0, 1)], ["What?", "Who speaks?"]
    new, manifest = load_student(folder), read_manifest(folder)
    assert (manifest.student.lora, manifest.student.llm == "llm") == (None if name == "merged" else config.lora, name == "merged")
    batch = new.batch(clips, questions, [[5, 6, 7], [8, 9]])
    predict_T = predicting_positions(batch.response_T)
    answers, logits_TV = new.answer(clips, questions, 6), new.logits(batch, predict_T)
    write_json(folder / MANIFEST, to_format_1(read_json(folder / MANIFEST)))
    assert read_json(folder / MANIFEST)["mix"] in ("all", "last")
    assert read_manifest(folder) == manifest
    old = load_student(folder)
    assert old.answer(clips, questions, 6) == answers and torch.equal(old.logits(batch, predict_T), logits_TV)


def edited(**changes: Any) -> Callable[[dict[str, Any]], str]:
    """The manifest with some keys changed, or left out where they are set to `...`."""
    return lambda manifest: json.dumps({name: value for name, value in (manifest | changes).items() if value is not ...})


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "cut off": (lambda manifest: json.dumps(manifest)[:200], "is damaged: not readable as JSON"),
    "empty": (lambda manifest: "", "is damaged: not readable as JSON"),
    "a list": (lambda manifest: "[1]", "must be a mapping of keys"),
    "no format": (edited(format=...), "^key `format` is missing"),
    "a later format": (
        edited(format="speechkd-student/3"),
        "unknown export format `speechkd-student/3`; this version reads `speechkd-student/2` and `speechkd-student/1`",
    ),
    "a format that is no text": (edited(format=[1]), "unknown export format"),
    "no encoder": (edited(encoder=...), "key `encoder` is missing"),
    "an encoder that is no block": (edited(encoder="standins/encoder"), "must be a mapping of keys, given `standins/encoder`.*: encoder"),
    "a model without a fingerprint": (edited(llm={"name": LLM}), r"key `fingerprint` is missing \(.*: llm.fingerprint\)"),
    "a projector without a kind": (edited(projector={}), "must be a mapping with `kind`; allowed: gated_mlp.*: projector"),
    "an unknown projector": (edited(projector={"kind": "liner"}), "unknown projector `liner`.*did you mean `linear`"),
    "a projector's unknown key": (edited(projector={"kind": "linear", "pol": 5}), "unknown key `pol`.*did you mean `pool`"),
    "an unknown mix": (edited(mix="some"), "unknown value `some`; allowed: all, last"),
    "nothing to normalise": (edited(mix="last", normalise_layers=True), "`encoder_states: last` sums no layers"),
    "files that are none": (edited(files=None), "must be a mapping of keys, is empty"),
    "a file outside": (edited(files={"../x": "0"}), "lists a file outside its folder"),
}


@pytest.fixture(scope="module")
def old_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old") / "out"
    config = config_of()
    exported(folder, trained(student_of(config)), config)
    write_json(folder / MANIFEST, to_format_1(read_json(folder / MANIFEST)))
    return folder


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_manifest_is_refused_in_one_line(name: str, old_export: Path) -> None:
    sound = (old_export / MANIFEST).read_text(encoding="utf-8")
    damage, message = BROKEN[name]
    try:
        (old_export / MANIFEST).write_text(damage(json.loads(sound)), encoding="utf-8")
        with pytest.raises(InputError, match=message) as caught:
            load_student(old_export)
        assert "\n" not in str(caught.value) and str(old_export) in str(caught.value)
    finally:
        (old_export / MANIFEST).write_text(sound, encoding="utf-8")


def test_the_range_of_the_training_is_part_of_an_export(tmp_path: Path) -> None:
    config, trained_on = config_of(), TrainingRange(seconds=(0.5, 3.0), level_db=(-30.0, -15.0), bandwidth_hz=(7000.0, 8000.0))
    tensors = trained(student_of(config))
    write_range(tmp_path, trained_on)
    exported(tmp_path / "out", tensors, config, training_range=tmp_path / RANGE)
    assert read_range(tmp_path / "out") == trained_on and RANGE in read_manifest(tmp_path / "out").files
    exported(tmp_path / "out", tensors, config, training_range=tmp_path / "of an earlier version")
    assert read_range(tmp_path / "out") is None


@torch.no_grad()
def test_an_export_is_compared_with_a_bfloat16_run_as_that_run_rounded_it(tmp_path: Path) -> None:
    """Master weights a quarter of a spacing above what the forward had, all one way, as after a first step smaller than that."""
    projector = {"kind": "mlp_stack", "stack": 5, "hidden": 6400}
    config = config_of(projector=projector, encoder_states="last", dtype="bfloat16")
    student = student_of(config)
    collate = make_collator(student, load_features(ENCODER))
    batch = collate([Row([5, 3, 9], [8, 7], [4, 6, 10, 11], torch.randn(16_000).numpy())])
    predict_T = predicting_positions(batch.response_T)
    logits_TV = student.llm.logits(student(batch, predict_T))
    save_probe(tmp_path / "probe.safetensors", batch, predict_T, logits_TV)
    fine = {name: p.float() + 0.24 * (p != 0) * 2.0 ** (torch.frexp(p.float()).exponent - 8) for name, p in student.trainable()}
    assert all(torch.equal(fine[name].bfloat16(), p) for name, p in student.trainable())
    difference = exported(tmp_path / "out", fine, config, probe=tmp_path / "probe.safetensors")
    as_written = load_student(tmp_path / "out").logits(batch, predict_T)
    assert difference is not None and difference < 0.02
    assert float((as_written - logits_TV).abs().max() / logits_TV.abs().max()) > 2 * difference
