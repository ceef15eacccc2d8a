"""What the ranks of the engine's tests run: `worker.py JOBS`, where JOBS is a JSON list of [what, folder, arguments ...]."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from speechkd.core import dist
from speechkd.core.tensors import TensorWriter, read_header, read_tensor
from speechkd.engine import checkpoint
from speechkd.engine.checkpoint_saver import Retention, Saver
from speechkd.engine.ds_config import read_ds_config
from speechkd.engine.loading import load_causal_lm, load_encoder
from speechkd.engine.wrap import Engine
from speechkd.engine.zero import close_distributed, gathered, init_distributed, is_partitioned, partition_report

M = 4
OPTIM = SimpleNamespace(lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
CONFIGS = Path(__file__).parents[2] / "ds_configs"


class Net(nn.Module):
    """Sizes that no number of ranks divides, a frozen part in the middle, a total as loss."""

    def __init__(self) -> None:
        super().__init__()
        self.projector, self.base, self.head = (nn.Linear(33, 63), nn.Linear(63, 63), nn.Linear(63, 7))
        self.base.requires_grad_(False)

    def forward(self, x_BD: torch.Tensor, y_BD: torch.Tensor) -> torch.Tensor:
        return ((self.head(torch.tanh(self.base(torch.tanh(self.projector(x_BD))))) - y_BD) ** 2).sum()


def save(engine: Engine, checkpoints: Path, step: int, state: dict[str, object]) -> None:
    """Save and wait until it is committed."""
    saver = Saver(engine, checkpoints, Retention())
    saver.begin(step, state)
    saver.finish()


def _any_rank(flag: bool) -> bool:
    """True on every rank if it is true on one."""
    return bool(dist.sum_over_ranks(torch.tensor(int(flag))).item())


def micro_batch(step: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step * 1000 + index)
    x_BD = torch.randn(3 + (step + index) % 5, 33, generator=generator)
    return x_BD, torch.sin(x_BD[:, :7])


def make(memory: str, precision: str = "fp32", resume: Path | None = None, rank_seed: bool = False) -> tuple[Engine, int]:
    init_distributed()
    torch.manual_seed(dist.rank() if rank_seed else 0)
    net = Net()
    if resume:
        with torch.no_grad():
            for param in net.parameters():
                if param.requires_grad:
                    param.fill_(float("nan"))  # whatever is not restored will show
        checkpoint.load_weights(net, resume)
    share, config = M // dist.world_size(), read_ds_config(CONFIGS / f"{memory}.json")
    if "zero_hpz_partition_size" in config["zero_optimization"]:
        config["zero_optimization"]["zero_hpz_partition_size"] = 2  # nodes of two ranks
    engine = Engine(net, OPTIM, config, share, 1.0, "bf16" if precision == "bf16" else "fp32")
    return engine, checkpoint.load_moments(engine, resume) if resume else 0


def run_step(engine: Engine, step: int, poison: bool = False) -> float:
    world, share = dist.world_size(), M // dist.world_size()
    count = sum(micro_batch(step, i)[0].shape[0] for i in range(M))
    total = 0.0
    for j in range(share):
        index = dist.rank() * share + j
        x_BD, y_BD = (t.to(next(iter(engine.module.parameters())).dtype) for t in micro_batch(step, index))
        out = engine(x_BD, y_BD)
        total += float(out.detach())
        engine.backward(out * (float("nan") if poison and index == M - 1 else 1.0) * world / count)
        engine.step()
    return float(dist.sum_over_ranks(torch.tensor(total, dtype=torch.float64))) / count


def weights(engine: Engine) -> dict[str, list[float]]:
    return {name: engine.master_weight(p).flatten().tolist() for name, p in engine.trainable()}


def answer(folder: Path, value: object) -> None:
    if dist.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "answer.json").write_text(json.dumps(value))


def train(folder: Path, memory: str, steps: str, save_at: str = "0", resume: str = "", precision: str = "fp32") -> None:
    engine, start = make(memory, precision, Path(resume) if resume else None)
    curve = []
    for step in range(start, int(steps)):
        curve.append(run_step(engine, step))
        if step + 1 == int(save_at):
            save(engine, folder / "checkpoints", step + 1, {"recipe": "r", "seed": 1})
    answer(folder, {"start": start, "curve": curve, "weights": weights(engine), "report": partition_report(engine.module)})


def nan(folder: Path, memory: str) -> None:
    engine, _ = make(memory)
    run_step(engine, 0)
    before, norm = weights(engine), engine.grad_norm()
    run_step(engine, 1, poison=True)
    same, bad_norm, counts = (weights(engine) == before, engine.grad_norm(), [engine.skipped, engine.skipped_in_a_row, engine.adam_step()])
    assert not _any_rank(engine.skipped != 1), "ranks disagree about the skipped step"
    run_step(engine, 2)
    finite = all(all(map(lambda v: v == v, values)) for values in weights(engine).values())
    answer(folder, {"same": same, "norm": norm, "bad": repr(bad_norm), "counts": counts, "finite": finite, "row": engine.skipped_in_a_row,
                    "moved": weights(engine) != before})  # fmt: skip


def spike(folder: Path, memory: str) -> None:
    """Three updates, of which the second is dropped; `norms` is what the guard was asked about."""
    engine, _ = make(memory)
    norms: list[float] = []

    def drops(norm: float) -> bool:
        norms.append(norm)
        return len(norms) == 2

    engine.drop_when(drops)
    run_step(engine, 0)
    before = weights(engine)
    run_step(engine, 1)
    same, dropped_norm, skipped = weights(engine) == before, engine.grad_norm(), [engine.skipped, engine.skipped_in_a_row]
    run_step(engine, 2, poison=True)
    answer(folder, {"same": same, "norms": list(map(repr, norms)), "norm": repr(dropped_norm), "skipped": skipped,
                    "after": [engine.skipped, engine.adam_step()], "kept": weights(engine) == before})  # fmt: skip


def reduced(folder: Path) -> None:
    """How far the summed gradients of two bfloat16 ranks are from a float32 sum of what each of them has, over the largest."""
    from deepspeed.utils import safe_get_full_grad

    engine, _ = make("zero3_test", "bf16")
    torch.manual_seed(0)
    plain, world, share = Net().to(torch.bfloat16), dist.world_size(), M // dist.world_size()
    sums = {name: torch.zeros(p.shape) for name, p in plain.named_parameters() if p.requires_grad}
    for j in range(share):
        x_BD, y_BD = (t.to(torch.bfloat16) for t in micro_batch(0, dist.rank() * share + j))
        plain.zero_grad()
        plain(x_BD, y_BD).backward()
        for name, param in plain.named_parameters():
            if param.grad is not None:
                sums[name] += param.grad.float()
        engine.backward(engine(x_BD, y_BD))
        if j < share - 1:
            engine.step()
    found = {name: safe_get_full_grad(p).float() for name, p in engine.trainable()}
    engine.step()
    wanted = {name: dist.sum_over_ranks(total) / world for name, total in sums.items()}
    scale = max(float(total.abs().max()) for total in wanted.values())
    answer(folder, max(float((found[name] - total).abs().max()) for name, total in wanted.items()) / scale)


def keep(folder: Path) -> None:
    """Saves at steps 1 to 4, then one on a full disk."""
    engine, _ = make("zero3_test")
    if dist.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    for step in range(4):
        run_step(engine, step)
        save(engine, folder / "checkpoints", step + 1, {})
    if dist.rank() == 0:
        (folder / "blocked").write_text("a file where the folder should be")
    try:
        save(engine, folder / "blocked", 5, {})
        failed = False
    except OSError:
        failed = True
    assert not _any_rank(not failed), "a rank did not hear of the failure"
    found = checkpoint.latest(folder / "checkpoints")
    answer(folder, {"failed": failed, "latest": found.name if found else None})


def beside(folder: Path) -> None:
    """A save that is slow, with steps while it runs; then one that fails, which only the next save says."""
    engine, _ = make("zero3_test")
    saver, go = Saver(engine, folder / "checkpoints", Retention()), threading.Event()
    run_step(engine, 0)
    saved = weights(engine)
    if dist.rank() == 0:
        slow = TensorWriter.add
        TensorWriter.add = lambda self, name, tensor: (go.wait(60), slow(self, name, tensor))[1]  # type: ignore[method-assign]
    saver.begin(1, {})
    for step in range(1, 4):
        run_step(engine, step)
    meanwhile = 0 if (folder / "checkpoints/step-000001").exists() else 3
    go.set()
    saver.finish()
    header = read_header(folder / "checkpoints/step-000001/weights.safetensors")
    same = all(read_tensor(header[name]).flatten().tolist() == values for name, values in saved.items())
    times = [save.step for save in saver.drain_times()]
    dist.barrier()  # the other rank may still be reading
    if dist.rank() == 0:
        shutil.rmtree(folder / "checkpoints")
        (folder / "checkpoints").write_text("a file where the folder should be")
    dist.barrier()
    saver.begin(2, {})
    saver.wait()
    late, told = _any_rank(saver.failed()), False
    try:
        saver.begin(3, {})
    except OSError:
        told = True
    assert not _any_rank(not told), "a rank did not hear of the failure"
    answer(folder, {"steps_meanwhile": meanwhile, "same": same, "failed_late": late, "told": told, "times": times})


def load(folder: Path, lm: str, whisper: str, dtype: str) -> None:
    """Loads both models partitioned and compares every parameter and buffer with transformers' own load, bit for bit."""
    from transformers import AutoModelForCausalLM, WhisperModel

    init_distributed()
    kind = getattr(torch, dtype)
    pairs = [(load_causal_lm(lm, kind, True), AutoModelForCausalLM.from_pretrained(lm, dtype=kind))]
    pairs.append((load_encoder(whisper, kind, True), WhisperModel.from_pretrained(whisper, dtype=kind).encoder))
    differ = []
    available = [name for ours, _ in pairs for name, here in partition_report(ours).items() if here]
    for ours, theirs in pairs:
        wanted = dict(theirs.named_parameters(remove_duplicate=False))
        names = {n for n, _ in ours.named_parameters(remove_duplicate=False)}
        differ += sorted(names ^ set(wanted))
        for name, param in ours.named_parameters(remove_duplicate=False):
            with gathered([param]):
                if not torch.equal(param.data, wanted[name].data) or param.dtype != wanted[name].dtype:
                    differ.append(name)
        reference = dict(theirs.named_buffers())
        differ += [n for n, b in ours.named_buffers() if not torch.equal(b, reference[n]) or b.dtype != reference[n].dtype]
        differ += [n for n, p in ours.named_parameters() if not is_partitioned(p)] + (["training mode"] if ours.training else [])
    flag = _any_rank(bool(differ))
    answer(folder, {"differ": differ, "available": available, "any": flag})


def high_water() -> int:
    """Peak resident memory of this process so far, in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def memory(folder: Path, lm: str, how: str) -> None:
    """Peak of one load over what the process had after its imports. An ordinary load maps the file: weights count once they are read."""
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401
    from transformers import AutoModelForCausalLM

    init_distributed()
    before = high_water()
    if how == "plain":
        model = AutoModelForCausalLM.from_pretrained(lm, dtype=torch.float32)
        assert sum(float(p.detach().sum()) for p in model.parameters()) == sum(float(p.detach().sum()) for p in model.parameters())
    else:
        model = load_causal_lm(lm, torch.float32, True)
    (folder / f"{how}-{dist.rank()}.json").write_text(json.dumps(high_water() - before))


WHAT = {"train": train, "nan": nan, "spike": spike, "reduced": reduced, "beside": beside, "keep": keep, "load": load, "memory": memory}

if __name__ == "__main__":
    for what, where, *rest in json.loads(sys.argv[1]):
        WHAT[what](Path(where), *rest)
    close_distributed()
