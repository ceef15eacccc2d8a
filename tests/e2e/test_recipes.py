"""Every recipe that ships trains, exports and answers: a few steps on a corpus of a minute, two ZeRO-3 ranks, real columns."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from speechkd.core.files import read_json
from speechkd.models import load_student
from speechkd.tracking.journal import JOURNAL, metric_series
from tests.e2e.conftest import ROOT, speechkd

PUBLISHED = {"wong26a.yaml", *(p.name for p in (ROOT / "pipelines").glob("*_paper.yaml"))}  # planned from files; their models are not here
RECIPES = sorted(p.name for p in (ROOT / "pipelines").glob("*.yaml") if p.name not in PUBLISHED)
CHANGES = [
    ("cross_modal.yaml", "objective=ce"),
    ("source_layer.yaml", "objective=skip"),
    ("source_layer.yaml", "objective=top"),
    ("source_layer.yaml", "objective=layer_ac student.mix=all student.normalise_layers=true student.start=EXPORT"),
    ("pl_distill.yaml", "objective=rkl"),
    ("pl_distill.yaml", "objective=ldist_cka"),
    ("lang_aware.yaml", "student.projector.choice=soft"),
    ("meta_prompt_kd.yaml", "train.regime=mix"),
    ("topk_kd.yaml", "objective=sampled"),
    ("topk_kd.yaml", "train.regime=mix"),
]
VARIANTS = [
    *(pytest.param(name, "", marks=pytest.mark.system) for name in RECIPES),
    *(pytest.param(*variant, marks=pytest.mark.torture) for variant in CHANGES),
]


def small(workshop: Path, exported: Path, name: str) -> Path:
    """The recipe on the workshop's corpus, four steps a phase."""
    recipe = yaml.safe_load((workshop / "recipe.yaml").read_text(encoding="utf-8"))
    own = yaml.safe_load((ROOT / "pipelines" / name).read_text(encoding="utf-8"))
    parent = own.pop("extends", None)
    if parent:
        base = yaml.safe_load((ROOT / "pipelines" / parent).read_text(encoding="utf-8"))
        own["losses"] = base["losses"] | own["losses"]
        own["train"] = {"regimes": base["train"]["regimes"] | own.get("train", {}).get("regimes", {})} | {
            "regime": own.get("train", {}).get("regime", base["train"]["regime"])
        }
    regimes = {regime: [{**phase, "steps": 4} for phase in phases] for regime, phases in own["train"]["regimes"].items()}
    if "prompt" in own:
        recipe["prompt"] |= own["prompt"]
    recipe |= {key: own[key] for key in ("live", "objective", "objectives", "losses", "paper") if key in own}
    recipe["student"] |= own.get("student", {})
    for role, block in own.get("teachers", {}).items():
        if "signals" in block:
            recipe["teachers"][role]["signals"] = block["signals"]
    recipe["train"] |= {"regime": own["train"]["regime"], "regimes": regimes, "checkpoint_every": 4}
    if "languages" in recipe["student"]["projector"]:
        recipe["student"]["projector"]["languages"] = recipe["student"]["projector"]["languages"][:2]
    if "hearer" in recipe.get("live", {}):
        recipe["live"]["hearer"]["model"] = str(exported)
    path = workshop / f"small-{name}"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "change"), VARIANTS)
def test_a_shipped_recipe_trains_and_exports(workshop: Path, exported: Path, name: str, change: str) -> None:
    run = f"{Path(name).stem}-{change.partition(' ')[0].replace('=', '-').replace('.', '_')}".strip("-")
    changes = [change.replace("EXPORT", str(exported)) for change in change.split()]
    words = [small(workshop, exported, name), *(word for change in (f"name={run}", *changes) for word in ("--set", change))]
    assert speechkd("teach", *words).returncode == 0
    done = speechkd("train", *words, "--ranks", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = workshop / "runs" / run
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    series = metric_series(folder / JOURNAL)
    for loss in recipe["losses"]:
        values = dict(series[f"train/loss_{loss}"])
        assert all(-1e-6 <= value < 1e4 for value in values.values()), (loss, values)  # a divergence of equals is 0 up to rounding
    out = folder / "export"
    done = speechkd("export", *words, "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_json(out / "export.json")["probe_difference"] <= 1e-5
    if recipe["student"]["lora"]:
        assert (out / "lora/adapter_model.safetensors").is_file()
        done = speechkd("export", *words, "--out", folder / "merged", "--merge")
        assert done.returncode == 0, done.stderr[-3000:]
        merged = read_json(folder / "merged/export.json")
        assert merged["merged"] and merged["lora"] is None and (folder / "merged/llm/config.json").is_file()
        assert merged["probe_difference"] <= 1e-5
        load_student(folder / "merged")
