"""Pretrained models: the same bits as transformers loads, on any number of ranks, in a fraction of the memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechkd.core.errors import DataError, InputError
from speechkd.engine.loading import load_causal_lm, load_encoder
from speechkd.models.architectures import meta_causal_lm, meta_encoder
from speechkd.models.model_folder import checkpoint_tensors
from tests.engine.conftest import Campaign
from tests.engine.ranks import run, save_causal_lm


@pytest.mark.parametrize("job", ["load-1-float32", "load-2-float32", "load-2-bfloat16", "load-4-bfloat16"])
def test_partitioned_models_hold_the_bits_of_an_ordinary_load(campaign: Campaign, job: str) -> None:
    assert campaign.answers[job] == {"differ": [], "available": [], "any": False}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unpartitioned_models_are_those_of_transformers(models: dict[str, str], dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM, WhisperModel

    ours = load_causal_lm(models["sharded"], dtype)
    theirs = AutoModelForCausalLM.from_pretrained(models["sharded"], dtype=dtype)
    pairs = [
        (ours, theirs),
        (load_encoder(models["whisper"], dtype), WhisperModel.from_pretrained(models["whisper"], dtype=dtype).encoder),
    ]
    for one, other in pairs:
        assert not one.training
        a, b = one.state_dict(), other.state_dict()
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == dtype for k in a)


@pytest.mark.parametrize("saved_as", ["model", "encoder"])
def test_a_whisper_encoder_is_found_however_it_was_saved(models: dict[str, str], tmp_path: Path, saved_as: str) -> None:
    from transformers import WhisperModel

    whole = WhisperModel.from_pretrained(models["whisper"])
    (whole if saved_as == "model" else whole.encoder).save_pretrained(tmp_path)
    loaded = load_encoder(str(tmp_path), torch.float32).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in whole.encoder.state_dict().items())


def test_dry_runs_count_without_memory(models: dict[str, str]) -> None:
    for meta, real in (
        (meta_causal_lm(models["tied"]), load_causal_lm(models["tied"], torch.float32)),
        (meta_encoder(models["whisper"]), load_encoder(models["whisper"], torch.float32)),
    ):
        assert {p.device.type for p in meta.parameters()} == {"meta"}
        assert sum(p.numel() for p in meta.parameters()) == sum(p.numel() for p in real.parameters())


def edited(source: str, target: Path, remove: str = "", add: str = "", reshape: str = "") -> str:
    """A copy of a one-file model with a tensor less, more, or of another shape."""
    shutil.copytree(source, target)
    file = target / "model.safetensors"
    tensors = load_file(file)
    if remove:
        del tensors[remove]
    if add:
        tensors[add] = torch.zeros(3)
    if reshape:
        tensors[reshape] = tensors[reshape][:-1].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    return str(target)


NORM = "model.encoder.layer_norm.weight"


@pytest.mark.parametrize(
    "edit, words",
    [
        ({"remove": NORM}, "1 missing tensors, first `layer_norm.weight`"),
        ({"add": "model.encoder.extra.weight"}, "1 unexpected tensors, first `extra.weight`"),
        ({"reshape": NORM}, "`layer_norm.weight` has shape .36. in the model and .35. in the file"),
    ],
)
def test_weights_that_do_not_fit_are_one_clear_error(models: dict[str, str], tmp_path: Path, edit: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_encoder(edited(models["whisper"], tmp_path / "m", **edit), torch.float32)


def test_a_missing_tensor_of_a_language_model_is_never_left_random(models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 missing tensors, first `model.norm.weight`"):
        load_causal_lm(edited(models["tied"], tmp_path / "m", remove="model.norm.weight"), torch.float32)


@pytest.mark.parametrize(
    "given, words", [("./nowhere", "no such model folder"), ("../x/y", "no such model folder"), ("a b", "no such model folder")]
)
def test_what_is_neither_folder_nor_id_is_refused_in_one_line(given: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_causal_lm(given, torch.float32)
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_asked_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="neither a local folder nor a hub model") as caught:
        meta_causal_lm("nobody/has-this-model")
    assert "\n" not in str(caught.value)


def test_folders_without_safetensors_are_refused(models: dict[str, str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["tied"], tmp_path / "m"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="no `model.safetensors`"):
        load_causal_lm(str(folder), torch.float32)


def test_an_index_may_not_name_a_path(models: dict[str, str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["sharded"], tmp_path / "m"))
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"] = {name: "../" + file for name, file in data["weight_map"].items()}
    index.write_text(json.dumps(data))
    with pytest.raises(DataError, match="not a plain file name"):
        checkpoint_tensors(folder)


@pytest.mark.parametrize("cut", [4, 60, -10])
def test_a_torn_file_is_refused(models: dict[str, str], tmp_path: Path, cut: int) -> None:
    folder = Path(shutil.copytree(models["tied"], tmp_path / "m"))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(DataError):
        load_causal_lm(str(folder), torch.float32)


def peaks(folder: Path, lm: str) -> tuple[int, list[int]]:
    """KiB: one ordinary load, and each of two ranks."""
    run(1, [["memory", str(folder), lm, "plain"]], forked=False)
    run(2, [["memory", str(folder), lm, "partitioned"]])
    plain = json.loads((folder / "plain-0.json").read_text())
    return plain, [json.loads((folder / f"partitioned-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_a_rank_of_two_peaks_at_065_of_an_ordinary_load(tmp_path: Path) -> None:
    """A model of 1 GB."""
    lm = save_causal_lm(tmp_path / "lm", hidden=1024, layers=14, vocabulary=32000)
    size = (lm / "model.safetensors").stat().st_size >> 10
    plain, ranks = peaks(tmp_path, str(lm))
    assert 0.9 * size < plain < 1.5 * size, "the ordinary load was not measured"
    print(f"plain {plain} KiB, ranks {ranks} KiB, ratios {[round(r / plain, 3) for r in ranks]}")
    assert max(ranks) <= 0.65 * plain
