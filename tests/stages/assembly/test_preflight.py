"""What is wrong with losses, LoRA or live teachers is one line and exit 2, while no weight file is even there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from speechkd import cli

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def weightless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-ins without their weights, and a teacher whose tokenizer disagrees with the student's on one id."""
    folder = tmp_path_factory.mktemp("weightless")
    for part in ("llm", "encoder"):
        shutil.copytree(ROOT / "standins" / part, folder / part, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(folder / "llm", folder / "other")
    path = folder / "other" / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    one, two = [token for token, number in vocabulary.items() if number in (700, 701)]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (folder / "other" / "tokenizer.model").unlink(missing_ok=True)
    return folder


def says(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, recipe: dict[str, object], *words: str) -> str:
    """The one line of a dry run of the embedded recipe with `recipe` over it, on models without weights."""
    over = {"extends": str(ROOT / "pipelines/meta_prompt_kd.yaml"), **recipe}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(over), encoding="utf-8")
    monkeypatch.chdir(ROOT)
    models = ["--set", f"student.llm={folder}/llm", "--set", f"student.encoder={folder}/encoder"]
    monkeypatch.setattr("sys.argv", ["speechkd", "train", str(path), "--dry-run", *models, *words])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    message = capsys.readouterr().err.strip()
    assert leaving.value.code == 2, message
    assert "Traceback" not in message and message.count("\n") == 0, message
    return message


READER = {"reader": {"kind": "self"}}
LORA = {"r": 2, "targets": ["q_proj"]}
WRONG = {
    "a LoRA target that matches nothing": (
        {"student": {"lora": {**LORA, "targets": ["q_prj"]}}},
        ["LoRA target `q_prj`", "did you mean `q_proj`", "student.lora.targets"],
    ),
    "a layer map out of range": (
        {"live": READER, "losses": {"layer_wise": {"teacher": "reader", "map": [[4, 4], [5, 4]]}}},
        ["5->4", "student layers 1..4", "losses.layer_wise"],
    ),
    "a skip that leaves no layer": (
        {"live": READER, "losses": {"layer_wise": {"teacher": "reader", "every": 9}}},
        ["9", "losses.layer_wise"],
    ),
    "a loss without its signal": ({"losses": {"topk_kl": {}}}, ["loss `topk_kl`", "`topk`", "set `teachers.kd.signals`"]),
    "a dense loss without a live teacher": (
        {"losses": {"divergence": {}}},
        ["loss `divergence`", "live teacher", "losses.divergence.teacher"],
    ),
    "an unknown live teacher": (
        {"live": READER, "losses": {"divergence": {"teacher": "raeder"}}},
        ["live teacher `raeder`", "did you mean `reader`"],
    ),
    "a reader asked what it hears": (
        {"live": READER, "losses": {"audio_kl": {"teacher": "reader"}}},
        ["loss `audio_kl`", "does not hear", "snapshot, speech"],
    ),
    "attention of a teacher that cannot show it": (
        {"live": {"old": {"kind": "snapshot"}}, "losses": {"attn_cka": {"teacher": "old"}}},
        ["loss `attn_cka`", "attention: false"],
    ),
    "a gate that the projector does not have": ({"losses": {"language_id": {}}}, ["loss `language_id`", "mlp_stack", "query_bank"]),
    "a contrast without its other side": (
        {"live": READER, "losses": {"contrastive": {"teacher": "reader"}}},
        ["loss `contrastive`", "losses.contrastive.negative"],
    ),
    "a contrast with another model": (
        {
            "live": {**READER, "other": {"kind": "text_llm", "model": "standins/llm", "reads": {"form": "nothing"}}},
            "losses": {"contrastive": {"teacher": "reader", "negative": "other"}},
        },
        ["losses.contrastive.negative", "`other`: text_llm standins/llm", "same kind and model", "`reader`: self"],
    ),
    "a snapshot of nothing learned": (
        {"live": {"old": {"kind": "snapshot"}}, "losses": {"acoustic_snapshot": {"teacher": "old"}}},
        ["live teacher `old` (snapshot)", "set `student.init_from`"],
    ),
    "stored signals at audio": (
        {"teachers": {"kd": {"signals": {"topk": {"k": 8}}}}, "losses": {"topk_kl": {"at": "audio", "streams": ["kd"]}}},
        ["loss `topk_kl`", "audio positions", "losses.topk_kl.at"],
    ),
    "response tokens at audio": (
        {"live": {"big": {"kind": "speech", "model": "nowhere"}}, "losses": {"cross_modal": {"at": "audio", "teacher": "big"}}},
        ["loss `cross_modal`", "the response's tokens", "losses.cross_modal.at"],
    ),
    "another k than the column's": (
        {"teachers": {"kd": {"signals": {"topk": {"k": 8}}}}, "losses": {"topk_kl": {"k": 16, "streams": ["kd"]}}},
        ["loss `topk_kl` has k 16", "stores 8 ids", "teachers.kd.signals.topk.k"],
    ),
    "a place for a loss on clips": ({"losses": {"attn_cka": {"at": "audio"}}}, ["key `at`"]),
    "a kernel for a loss without one": ({"losses": {"response_ce": {}, "language_id": {"impl": "chunked"}}}, ["key `impl`"]),
    "a map and a stride": (
        {"live": READER, "losses": {"layer_wise": {"teacher": "reader", "map": [[4, 4]], "every": 2}}},
        ["`every` says nothing beside `map`"],
    ),
    "a key of another divergence": (
        {"live": READER, "losses": {"divergence": {"teacher": "reader", "name": "jsd", "alpha": 0.1}}},
        ["divergence `jsd` does not use `alpha`", "skew_kl, skew_reverse_kl"],
    ),
    "stored states through the logit lens": (
        {"teachers": {"kd": {"signals": {"hidden": {"layers": [2, 4]}}}}, "losses": {"layer_wise": {"streams": ["kd"]}}},
        ["loss `layer_wise` needs a live teacher", "losses.layer_wise.teacher"],
    ),
    "a layer that is not stored": (
        {
            "teachers": {"kd": {"signals": {"hidden": {"layers": [2, 3]}}}},
            "losses": {"layer_wise": {"representation": "cka", "every": 2, "streams": ["kd"]}},
        },
        ["teacher `kd` stores layers 2, 3, not 4", "signals.hidden.layers", "losses.layer_wise"],
    ),
    "stored states at audio": (
        {"teachers": {"kd": {"signals": {"hidden": {"layers": [4]}}}}, "losses": {"acoustic_snapshot": {"every": 4, "streams": ["kd"]}}},
        ["loss `acoustic_snapshot` cannot be at audio positions", "losses.acoustic_snapshot.at"],
    ),
    "states that no loss reads": (
        {"teachers": {"kd": {"signals": {"hidden": {"layers": [4]}}}}},
        ["no loss of this recipe reads stored `hidden`", "layer_wise"],
    ),
    "a temperature of states as they are": (
        {"live": READER, "losses": {"layer_wise": {"teacher": "reader", "representation": "cka", "temperature": 2.0}}},
        ["representation `cka` does not use `temperature`", "logit_lens"],
    ),
    "a distance of distributions": (
        {"live": READER, "losses": {"layer_wise": {"teacher": "reader", "distance": "mse"}}},
        ["representation `logit_lens` does not use `distance`", "linear, hidden"],
    ),
    "a kernel for states as they are": (
        {"live": READER, "losses": {"layer_wise": {"teacher": "reader", "representation": "hidden", "impl": "reference"}}},
        ["representation `hidden` does not use `impl`"],
    ),
    "a way to weigh without weights": (
        {
            "live": {"big": {"kind": "speech", "model": "nowhere"}},
            "losses": {"attn_cka": {"teacher": "big", "attention": False, "mode": "pre_w"}},
        },
        ["without attention all positions weigh the same", "`mode`"],
    ),
    "a projector that starts from no speech LLM": (
        {"student": {"projector": {"kind": "linear", "init_from": str(ROOT / "standins/llm")}}},
        ["no speech LLM with a projector", "projector.init_from"],
    ),
    "a scale for layers that are not mixed": ({"student": {"encoder_states": "last"}}, ["`encoder_states: last`", "normalise_layers"]),
    "an unknown stream": (
        {"losses": {"response_ce": {"streams": ["kdd"]}}},
        ["stream `kdd`", "did you mean `kd`", "losses.response_ce.streams"],
    ),
    "a channel that there is not": (
        {"train": {"regime": "x", "regimes": {"x": [{"name": "x", "steps": 1, "mix": {"kd/txt": 1}}]}}},
        ["stream `kd/txt`", "`role/text`"],
    ),
    "an unknown objective": (
        {"objective": "ful", "objectives": {"full": ["response_ce"]}},
        ["objective `ful`", "did you mean `full`"],
    ),
    "an export that is not there": (
        {"live": {"big": {"kind": "speech", "model": "nowhere"}}, "losses": {"attn_cka": {"teacher": "big"}}},
        ["`nowhere` is no export"],
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_method_is_told_before_any_weight_is_there(
    what: str, weightless: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, parts = WRONG[what]
    message = says(capsys, monkeypatch, weightless, recipe)
    assert all(part in message for part in parts), message


def test_vocabularies_that_disagree_on_a_shared_id(
    weightless: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"live": {"reader": {"kind": "text_llm", "model": f"{weightless}/other"}}, "losses": {"divergence": {"teacher": "reader"}}}
    message = says(capsys, monkeypatch, weightless, recipe)
    assert "vocabularies disagree: id 700" in message and f"{weightless}/other" in message and "live.reader" in message


def test_the_same_recipe_with_its_names_right_is_planned(
    weightless: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: nothing above is refused for want of weights."""
    over = {
        "extends": str(ROOT / "pipelines/meta_prompt_kd.yaml"),
        "live": {"reader": {"kind": "text_llm", "model": f"{weightless}/llm"}},
        "student": {"llm": f"{weightless}/llm", "encoder": f"{weightless}/encoder", "lora": LORA},
        "losses": {"layer_wise": {"teacher": "reader"}},
        "data": {"root": str(weightless / "none")},
    }
    path = weightless / "right.yaml"
    path.write_text(yaml.safe_dump(over), encoding="utf-8")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["speechkd", "train", str(path), "--dry-run"])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    message = capsys.readouterr()
    assert leaving.value.code == 1, message.err
    assert "data        not ready" in message.out and "layer_wise" in message.out and "lora" in message.out


EXTRACTORS: dict[str, tuple[dict[str, object], str]] = {
    "more mels": ({"feature_size": 128}, "takes 80 mels, its extractor makes 128"),
    "fewer mels": ({"feature_size": 64}, "takes 80 mels, its extractor makes 64"),
    "another rate": ({"sampling_rate": 8000}, "hears 8000 Hz, shards have 16000"),
    "waveforms": ({"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1}, "its extractor makes "),
}


@pytest.mark.parametrize("what", EXTRACTORS)
def test_a_dry_run_compares_extractor_and_encoder(
    what: str, weightless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = EXTRACTORS[what]
    shutil.copytree(weightless / "encoder", tmp_path / "encoder")
    path = tmp_path / "encoder/preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    said = says(capsys, monkeypatch, weightless, {}, "--set", f"student.encoder={tmp_path}/encoder")
    assert message in said and "preprocessor_config.json" in said


QUANTISED: dict[str, object] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "compressed-tensors": {"quant_method": "compressed-tensors", "config_groups": {}},
    "unknown": {"quant_method": "nope"},
    "unnamed": {"bits": 4},
    "a text": "gptq",
    "a number": 4,
    "a list": ["gptq"],
}


@pytest.mark.parametrize("method", QUANTISED)
def test_a_dry_run_says_which_quantised_model_cannot_be_loaded(
    method: str, weightless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(weightless / "llm", tmp_path / "llm")
    path = tmp_path / "llm/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": QUANTISED[method]}))
    as_student = says(capsys, monkeypatch, weightless, {}, "--set", f"student.llm={tmp_path}/llm")
    assert (
        "not a model configuration" in as_student or "is quantised" in as_student and "name the model that it was made from" in as_student
    )
    as_teacher = says(capsys, monkeypatch, weightless, {}, "--set", f"teachers.kd.model={tmp_path}/llm")
    assert "not a model configuration" in as_teacher or "is quantised" in as_teacher and "cannot be loaded here" in as_teacher
