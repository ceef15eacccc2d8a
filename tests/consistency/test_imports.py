"""Light imports stay light: the command line answers at once, and a loss can be used without the rest."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("transformers", "deepspeed", "mlflow", "webdataset", "matplotlib", "peft", "pandas")
LIGHT = {
    "speechkd": (*HEAVY, "torch", "numpy"),
    "speechkd.core.config": (*HEAVY, "torch", "numpy"),
    "speechkd.cli": (*HEAVY, "torch"),
    "speechkd.losses": HEAVY,
    "speechkd.losses.divergences": HEAVY,
}


@pytest.mark.parametrize("module", LIGHT)
def test_import_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, json, {module}; print(json.dumps([name for name in sys.argv[1:] if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code, *LIGHT[module]], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_deepspeed_brings_neither_mlflow_nor_a_compiler() -> None:
    """Its autotuner would, and its Muon: two thirds of a rank's start, and thousands of small reads from a shared folder."""
    code = (
        "import sys; from speechkd.engine.zero import import_deepspeed; import_deepspeed(); import deepspeed.autotuning;"
        "import deepspeed.runtime.zero.stage3, deepspeed.runtime.zero.stage_1_and_2;"
        "assert not {'mlflow', 'pandas', 'fastapi', 'torch._dynamo'} & set(sys.modules); import mlflow;"
        "from deepspeed.runtime import compiler; import torch; assert compiler.compile() is torch.compile"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
