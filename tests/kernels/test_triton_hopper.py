"""Every Triton kernel at every row of its launch table, compiled for Hopper (sm_90) without a GPU: what fits, what spills, what is wide."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from speechkd.kernels.triton_launch import LAUNCH
from tests.consistency.house import ROOT

SHARED_LIMIT = 232_448
"""Bytes of shared memory that a block can have on Hopper; more fails at launch, not at compilation"""
REGISTERS = 65_536
"""Of one multiprocessor"""


@pytest.mark.system
@pytest.mark.parametrize("table", LAUNCH)
def test_every_row_of_the_table_compiles_for_hopper(table: str) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.triton_aot", table]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["block"] for row in compiled} == {row.block for row in LAUNCH[table]}
    for row in compiled:
        assert row["shared"] <= SHARED_LIMIT, row
        assert row["spilled"] == 0 or row["spills"], row
        assert row["registers"] * row["num_warps"] * 32 <= REGISTERS, row
        assert row["wide_loads"], f"loads narrower than 16 bytes: {row}"
        # these are row kernels: the matrix products around them are cuBLAS's; one that has a product must use the tensor cores
        assert row["wgmma"] == row["products"], row
        assert not row["products"], row
