"""What a file of ds_configs/ may say, and what the engine makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from speechkd.core.errors import InputError
from speechkd.engine.ds_config import FILES, full_ds_config, read_ds_config, stage, with_linear

CONFIGS = Path(__file__).parents[2] / "ds_configs"
OPTIM = SimpleNamespace(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def test_every_file_is_readable_and_only_the_test_one_has_threshold_zero() -> None:
    thresholds = {p.name: read_ds_config(p)["zero_optimization"].get("stage3_param_persistence_threshold") for p in CONFIGS.glob("*.json")}
    assert thresholds.pop("zero3_test.json") == 0 and thresholds.pop("zero2.json") is None
    assert stage(read_ds_config(CONFIGS / "zero2.json")) == 2
    for name, threshold in thresholds.items():
        assert 64 * 18_944 < threshold < 1280**2, f"{name}: LoRA of rank 64 is kept whole, a Whisper's matrices are not"
    assert {str(CONFIGS.parent / file) for file in FILES} <= {str(CONFIGS / name) for name in [*thresholds, "zero2.json"]}


@pytest.mark.parametrize(
    "extra, words",
    [
        ({"train_micro_batch_size_per_gpu": 4}, "belongs in the recipe"),
        ({"gradient_clipping": 1.0}, "belongs in the recipe"),
        ({"optimizer": {"type": "Adam"}}, "belongs in the recipe"),
        ({"bf16": {"enabled": True}}, "belongs in the recipe"),
        ({"zero_optimisation": {}}, "did you mean `zero_optimization`"),
        ({"zero_optimization": {"stage": 1}}, "must be 2 or 3, is 1"),
        ({"zero_optimization": 3}, "must be 2 or 3, is None"),
        ({"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}}, '`zero_optimization.reduce_bucket_size` is "auto"'),
    ],
)
def test_what_is_not_memory_or_communication_is_refused(tmp_path: Path, extra: dict[str, object], words: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}, **extra}))
    with pytest.raises(InputError, match=words) as caught:
        read_ds_config(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_or_broken_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean .*zero3.json"):
        read_ds_config(CONFIGS / "zero33.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match="not readable as JSON"):
        read_ds_config(tmp_path / "x.json")


def test_the_whole_configuration_states_what_deepspeed_would_guess() -> None:
    whole = full_ds_config(read_ds_config(CONFIGS / "zero3.json"), OPTIM, 4, 0.0, "fp32")
    assert (whole["train_micro_batch_size_per_gpu"], whole["gradient_accumulation_steps"], whole["gradient_clipping"]) == (1, 4, 0.0)
    assert whole["optimizer"]["params"]["torch_adam"] and whole["bf16"] == {"enabled": False}
    assert whole["communication_data_type"] == "fp32", "else bf16 ranks would add with three digits"
    chosen = full_ds_config({**read_ds_config(CONFIGS / "zero3.json"), "communication_data_type": "bf16"}, OPTIM, 4, 0.0, "bf16")
    assert chosen["communication_data_type"] == "bf16"
    with pytest.raises(InputError, match="at least one micro-batch"):
        full_ds_config({"zero_optimization": {"stage": 3}}, OPTIM, 0, 1.0, "fp32")


def test_recomputed_blocks_use_the_linear_of_torch() -> None:
    zero3, zero2 = (read_ds_config(CONFIGS / f"{name}.json") for name in ("zero3", "zero2"))
    assert with_linear(zero3, True)["zero_optimization"]["memory_efficient_linear"] is False
    assert with_linear(zero3, False) == zero3 and with_linear(zero2, True) == zero2, "else weights are held from forward to backward"
