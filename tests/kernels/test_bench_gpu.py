"""The GPU bench where there is no GPU: it says so in one line, and its whole flow runs on small shapes, in the interpreter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.bench import gpu, gpu_cases


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_exits_with_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == gpu.main(["--look"]) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.splitlines()[0].startswith("bench-gpu: no CUDA device here")


@pytest.mark.usefixtures("interpreter")
def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    h = gpu_cases.Heads.make(gpu_cases.TINY.checked, gpu_cases.TINY, torch.device("cpu"))
    monkeypatch.setattr(gpu, "cross_entropy_rows_", lambda z, *rest: z[:, 0].float())
    with pytest.raises(SystemExit, match="cross_entropy rows: value is wrong.*nothing was timed"):
        gpu.correctness(gpu_cases.TINY, h.hidden_TD.device)


@pytest.mark.system
@pytest.mark.usefixtures("interpreter")
def test_the_whole_flow_on_small_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cpu", "--tiny", "--json", str(tmp_path / "gpu.json")]) == 0
    found, said = json.loads((tmp_path / "gpu.json").read_text()), capsys.readouterr().out
    assert len(found["tables"]) == 3 + len(gpu_cases.TINY.dense_tokens)
    for title, rows in found["tables"].items():
        assert f"### {title}" in said
        assert all(row["ms"] for row in rows if "liger" not in row["name"]), rows
    assert {"product_tflops", "copy_tbs"} == found["ceilings"].keys() and len(found["errors"]) >= 29
