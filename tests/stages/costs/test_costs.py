"""Memory, gathers, files and hours of a plan, beside what can be counted."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from speechkd.cluster.profile import ClusterProfile
from speechkd.core.files import canonical_json
from speechkd.core.tensors import TensorWriter, file_bytes
from speechkd.models.recompute import recompute_blocks
from speechkd.recipe import load_recipe
from speechkd.stages.assembly.memory_file import auto_file, best_file
from speechkd.stages.costs.cluster_plan import make_plan, plan_on_cluster
from speechkd.stages.costs.memory import activation_bytes
from speechkd.stages.costs.pace import estimated_pace, journal_pace
from speechkd.stages.costs.shapes import Shapes
from speechkd.stages.costs.traffic import gather_calls
from tests.contracts.cases import CASES
from tests.contracts.tiny import distiller_of

ROOT = Path(__file__).parents[3]
H200 = ClusterProfile(name="h200", gpus_per_node=8, gpu_memory_gib=139, gpu_tflops=989, train={"nodes": 2})
GIB = 2**30


def shapes(rows: int, length: int, clips: int, frames: int) -> Shapes:
    return Shapes(
        basis="", flops=0, examples=rows, positions=0, audio_seconds=0, rows=rows, length=length, clips=clips, frames=frames, tokens=1
    )


@pytest.mark.parametrize("name", ["plora", "projector-qformer"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_activations_on_meta_are_those_of_a_real_pass(name: str, attention: str) -> None:
    """The same bytes that autograd keeps of a pass with numbers; sdpa's fused kernel keeps its rows' sums besides, which are few."""
    student = distiller_of(replace(CASES[name], recompute="off")).student
    student.llm.lm.set_attn_implementation(attention)
    real = saved_by_a_real_pass(student, 3, 48, 2, 30)
    planned = activation_bytes(student.to("meta"), shapes(3, 48, 2, 30))
    assert planned == pytest.approx(real, rel=0.01 if attention == "eager" else 0.05)


def test_recomputed_blocks_keep_what_is_foretold() -> None:
    """Bytes that autograd keeps of a pass with numbers; `selective` keeps products out of its sight. A block's own pass comes on top."""
    student = distiller_of(CASES["lora"]).student
    student.llm.lm.set_attn_implementation("eager")
    at = shapes(3, 48, 2, 30)
    meta = copy.deepcopy(student).to("meta")
    off, selective, full = (activation_bytes(meta, at, how) for how in ("off", "selective", "full"))
    heard = activation_bytes(meta, shapes(1, 2, 2, 30)) - activation_bytes(meta, shapes(1, 2, 0, 30))
    recompute_blocks(student.llm.blocks(), "full", student.llm.switch, False)
    real = saved_by_a_real_pass(student, 3, 48, 2, 30)
    assert full == pytest.approx(real + (off - heard) / student.llm.layers, rel=0.15)
    assert full < selective and full < off, "of two blocks one is half of all: `selective` pays from a few on"


def saved_by_a_real_pass(student: torch.nn.Module, rows: int, length: int, clips: int, frames: int) -> float:
    own, kept = {p.data_ptr() for p in [*student.parameters(), *student.buffers()]}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    inputs = torch.randn(rows, length, student.llm.width, requires_grad=True)
    mask = torch.zeros(rows, 1, length, length).masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
    states = torch.randn(clips, frames, student.encoder.width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        places = torch.arange(length).expand(rows, length)
        out = student.llm.lm.base_model(inputs_embeds=inputs, attention_mask=mask, position_ids=places, use_cache=False)
        heard = student.projector(states)
    assert out is not None and heard is not None
    return float(sum(storage.nbytes() for storage in kept.values()))


def test_the_published_setting_on_two_nodes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whisper-large-v3 and Gemma2-9b on 16 GPUs: 20 GB of frozen weights fit on one, so gathering them would only cost."""
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(Path("pipelines/wong26a.yaml"))
    plan = make_plan(recipe, H200)
    assert plan.ranks == 16 and plan.deepspeed == "ds_configs/zero2.json"
    frozen = (9_241_705_984 + 636_968_960) * 2
    assert plan.memory.frozen == pytest.approx(frozen / 16, rel=0.001)
    assert plan.memory.optimiser == (145_827_584 + 33) * 16 / 16  # the projector and 33 weights of the layer mix
    assert plan.gathers is not None and plan.compute_s is not None and plan.gathers.seconds > plan.compute_s
    assert plan.checkpoint_bytes == pytest.approx(3 * 4 * 145_827_584, rel=1e-4)
    assert plan.pace is not None and plan.pace.basis == "estimated at MFU 0.30 of 989 TFLOP/s"
    assert plan.pace.step_s == pytest.approx(plan.flops_per_step / 16 / (989e12 * 0.3))
    assert plan_on_cluster(recipe, H200, 1000.0, False, True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["seconds"] is None and told["memory_bytes"] == plan.memory.total


def test_the_file_with_least_communication_that_fits_is_named() -> None:
    assert best_file(100, 20, 30, 10, 120, 16, 8)[0] == "ds_configs/zero2.json"
    file, why = best_file(200, 20, 60, 10, 120, 16, 8)
    assert file == "ds_configs/zero3_hpz.json" and "zero_hpz_partition_size: 8" in why
    assert best_file(200, 20, 60, 10, 120, 8, 8)[0] == "ds_configs/zero3.json", "one node has no other"
    assert best_file(200, 20, 130, 10, 120, 16, 8)[0] == "ds_configs/zero3.json"
    assert best_file(200, 130, 160, 110, 120, 16, 8)[0] == "ds_configs/zero3_offload.json"
    assert best_file(200, 130, 160, 121, 120, 16, 8)[0] == "none"


def test_auto_takes_what_fits_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whisper-large-v3 and Gemma2-9b, 18.7 GiB of weights in bfloat16, half of a rank's memory."""
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(Path("pipelines/wong26a.yaml"), ["deepspeed=auto"])
    wanted = {(80, 8, 8): "zero2", (24, 8, 8): "zero3", (24, 64, 8): "zero3_hpz", (2, 8, 8): "zero3_offload"}
    for (gib, ranks, per_node), file in wanted.items():
        found, why = auto_file(recipe, gib * GIB, ranks, per_node)
        assert found == f"ds_configs/{file}.json" and f"18.7 GiB of weights, {gib} GiB a rank, {ranks} ranks" in why, (found, why)


def test_gathers_are_counted_by_blocks() -> None:
    """Encoder: two convolutions, positions, blocks, norm; then mix, projector, embeddings, blocks, norm, head."""
    student = distiller_of(CASES["loss-topk_kl"]).student
    assert gather_calls(student, 0) == (6 + 2 + 1 + 2 + 1 + 1, 2 + 2 + 1)
    assert gather_calls(student, 1e9) == (0, 0), "what persists is never gathered"


def test_a_file_of_tensors_is_as_large_as_foretold(tmp_path: Path) -> None:
    given = [("projector.weight", (7, 5)), ("gate", ()), ("parts.x.map", (3,))]
    writer = TensorWriter(tmp_path / "x.safetensors", given)
    for name, shape in given:
        writer.add(name, torch.zeros(shape))
    writer.close()
    assert (tmp_path / "x.safetensors").stat().st_size == file_bytes(given)


def journal(path: Path, *starts: list[tuple[str, int, float]]) -> Path:
    """(kind, step, second) of each record; statuses have step -1."""
    lines = []
    for start in starts:
        for kind, step, second in start:
            record = {"time_ms": int(1000 * second), "kind": "status" if step < 0 else "metric"}
            record |= {"status": kind} if step < 0 else {"step": step, "values": {"train/loss": 1.0}}
            lines.append(canonical_json(record))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_pace_is_read_from_the_latest_whole_start(tmp_path: Path) -> None:
    steps = [("", step, 10 + 2.0 * step + (5 if step > 4 else 0)) for step in range(1, 9)]  # a save of 5 s after step 4
    whole = [("RUNNING", -1, 0.0), *steps, ("FINISHED", -1, 36.0)]
    pace = journal_pace(journal(tmp_path / "a", whole), "x", 2)
    assert pace is not None and (pace.step_s, pace.start_s, pace.checkpoint_s, pace.end_s) == (2.0, 10.0, 5.0, 5.0)
    assert pace.train_s(8, 1) == 36.0 and pace.on(2, 4).step_s == 1.0
    assert journal_pace(journal(tmp_path / "b", whole, [("RUNNING", -1, 100.0), ("", 9, 110.0)]), "x", 2) == pace, "the second is cut"
    assert journal_pace(journal(tmp_path / "c", [("RUNNING", -1, 0.0), ("", 1, 2.0)]), "x", 2) is None


def test_an_estimate_says_that_it_is_one() -> None:
    pace = estimated_pace(989e12 * 0.3, 989, 0.3, 10**9, 10**9)
    assert pace.step_s == pytest.approx(1.0) and "estimated at MFU 0.30" in pace.basis and pace.checkpoint_s == 1.0
