"""LM-head losses beside torch, Liger, TRL and CCE on the same inputs: forward and hidden gradient, frozen head.

`python -m tests.bench.heads [--json FILE] [--rounds 7] [--alone] [CASE ...]` prints one table. Everybody has a turn in every round; a cell
is the floor's median over theirs: 1.00 means as fast as the matrix products alone. Memory is the peak above the inputs, a fresh process
each.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from speechkd.kernels import linear_cross_entropy, linear_kl, linear_topk_kl
from tests.bench.interleaved import bf16_products, peak_of_this

K = 64
Run = Callable[[], tuple[Tensor, Tensor]]
"""-> (loss, gradient of the hidden states)"""


class Case(NamedTuple):
    """One loss at one size."""

    loss: str
    """topk, forward, jsd or ce"""
    T: int
    D: int
    V: int
    dtype: str

    @property
    def name(self) -> str:
        """As the command line has it."""
        return f"{self.loss}-{self.T}x{self.D}x{self.V}-{self.dtype}"

    @property
    def products(self) -> int:
        """Matrix products of the floor: logits, hidden gradient, and the teacher's logits where it is dense."""
        return 3 if self.loss in ("forward", "jsd") else 2


SIZES = ((512, 896, 32_000), (512, 2_048, 151_936))
CASES = {
    case.name: case
    for case in (
        Case(loss, *size, dtype) for dtype in ("float32", "bfloat16") for size in SIZES for loss in ("topk", "ce", "forward", "jsd")
    )
}


class Inputs:
    """Hidden states and heads of student and teacher, targets and the teacher's top-k."""

    def __init__(self, case: Case) -> None:
        g = torch.Generator().manual_seed(1)
        dtype = getattr(torch, case.dtype)
        T, D, V = case.T, case.D, case.V

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g).to(dtype)

        self.hidden, self.weight = normal(T, D), normal(V, D) / D**0.5
        self.teacher_hidden, self.teacher_weight = (normal(T, D), normal(V, D) / D**0.5) if case.products == 3 else (None, None)
        self.targets, self.mask = torch.randint(V, (T,), generator=g), torch.ones(T, dtype=torch.bool)
        self.ids = torch.stack([torch.randperm(V, generator=g)[:K] for _ in range(T)])
        mass = torch.rand(T, K + 1, generator=g).log_softmax(1)
        self.logp, self.tail = mass[:, :K].contiguous(), mass[:, K].contiguous()

    def hidden_leaf(self) -> Tensor:
        """The hidden states, wanting a gradient."""
        return self.hidden.detach().requires_grad_()


def floor(case: Case, x: Inputs) -> Callable[[], Any]:
    """The matrix products alone."""

    def run() -> Any:
        logits = linear(x.hidden, x.weight)
        if x.teacher_hidden is not None:
            linear(x.teacher_hidden, x.teacher_weight)
        return logits @ x.weight

    return run


def _graded(x: Inputs, loss: Callable[[Tensor], Tensor]) -> Run:
    def run() -> tuple[Tensor, Tensor]:
        leaf = x.hidden_leaf()
        value = loss(leaf)
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    return run


def ours(case: Case, x: Inputs, impl: str = "auto") -> Run:
    """speechkd's op."""

    def loss(hidden: Tensor) -> Tensor:
        if case.loss == "topk":
            return linear_topk_kl(hidden, x.weight, x.ids, x.logp, x.mask, x.tail, impl=impl).total
        if case.loss == "ce":
            return linear_cross_entropy(hidden, x.weight, x.targets, x.mask, impl).total
        name = "forward_kl" if case.loss == "forward" else "jsd"
        return linear_kl(hidden, x.weight, x.teacher_hidden, x.teacher_weight, x.mask, name, impl=impl).total

    return _graded(x, loss)


def naive(case: Case, x: Inputs) -> Run:
    """What one writes: logits, log-softmax in float32, autograd."""

    def loss(hidden: Tensor) -> Tensor:
        logits = linear(hidden, x.weight).float()
        if case.loss == "ce":
            return cross_entropy(logits, x.targets, reduction="sum")
        logq = logits.log_softmax(1)
        if case.loss == "topk":
            kept = logq.gather(1, x.ids)
            rest = torch.log1p(-kept.exp().sum(1).clamp(max=1 - 1e-6))
            return (x.logp.exp() * (x.logp - kept)).sum() + (x.tail.exp() * (x.tail - rest)).sum()
        logp = linear(x.teacher_hidden, x.teacher_weight).float().log_softmax(1)
        if case.loss == "forward":
            return torch.nn.functional.kl_div(logq, logp, reduction="sum", log_target=True)
        logm = torch.logaddexp(logp, logq) - 0.6931471805599453
        return 0.5 * ((logp.exp() * (logp - logm)).sum() + (logq.exp() * (logq - logm)).sum())

    return _graded(x, loss)


def peers(case: Case, x: Inputs) -> Iterator[tuple[str, Run]]:
    """Other libraries' losses of this kind; one that is not installed is left out."""
    yield "torch eager", naive(case, x)
    with suppress(ImportError):
        if case.products == 3:
            from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

            beta = 0.0 if case.loss == "forward" else 0.5
            for compiled in (True, False):
                module = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=compiled)
                rest = (x.weight, x.teacher_hidden, x.teacher_weight, x.targets)
                yield f"Liger {'compiled' if compiled else 'eager'}", _graded(x, partial(_liger, module, case.T, rest))
    with suppress(ImportError):
        if case.products == 3:
            from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

            beta = 0.0 if case.loss == "forward" else 0.5
            yield "TRL", _graded(
                x,
                lambda h: ChunkedDivergenceFunction.apply(h, x.weight, None, x.teacher_hidden, x.teacher_weight, None, beta)[0].sum(),
            )
    if case.loss == "ce":
        with suppress(ImportError, AttributeError):
            from torch.nn.functional import linear_cross_entropy as torch_ce

            yield "torch linear_cross_entropy", _graded(x, lambda h: torch_ce(h, x.weight, x.targets, reduction="sum"))
        with suppress(ImportError):
            from cut_cross_entropy.torch_compile import torch_compile_linear_cross_entropy as cce

            yield "CCE torch_compile", _graded(x, lambda h: cce(h, x.weight, x.targets, reduction="sum"))


def _liger(module: Any, rows: int, rest: tuple[Tensor | None, ...], hidden: Tensor) -> Tensor:
    return rows * module(hidden, *rest)  # it gives the mean


def check(case: Case, x: Inputs, runs: dict[str, Run]) -> dict[str, float]:
    """Relative error of each gradient against float32 autograd on the same rounded inputs, of 64 rows. Raises for more than 2 %."""
    few = Inputs.__new__(Inputs)
    few.__dict__ = {k: (v[:64] if v is not None and v.shape[0] == case.T else v) for k, v in x.__dict__.items()}
    exact = Inputs.__new__(Inputs)
    exact.__dict__ = {k: (v.float() if v is not None and v.is_floating_point() else v) for k, v in few.__dict__.items()}
    truth = naive(case, exact)()[1]
    errors = {}
    for name, run in runs.items():
        grad = run()[1][:64].float()
        errors[name] = ((grad - truth).norm() / truth.norm()).item()
        if not errors[name] < 0.02:
            print(f"bench: {name} has a gradient error of {errors[name]:.1%} on {case.name}", file=sys.stderr)
    return errors


def measure(case: Case, rounds: int, alone: bool) -> dict[str, Any]:
    """One line of the table; `alone`: beside torch eager and nobody else."""
    x = Inputs(case)
    runs = {"speechkd": ours(case, x), **({"torch eager": naive(case, x)} if alone else dict(peers(case, x)))}
    errors = check(case, x, runs)
    base = floor(case, x)
    base()
    taken: dict[str, list[float]] = {name: [] for name in ("floor", *runs)}
    for _ in range(rounds):
        for name, run in (("floor", base), *runs.items()):
            began = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - began)
    medians = {name: median(times) for name, times in taken.items()}
    memory = {name: _memory(case, name) for name in runs}
    return {"case": case.name, "seconds": medians, "memory_mib": memory, "gradient_error": errors, "rounds": rounds}


def _memory(case: Case, name: str) -> float:
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.heads", "--memory", case.name, name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def peak(case: Case, name: str) -> float:
    """Peak memory of one call above the inputs and a small call, MiB."""
    small = Inputs(case._replace(T=32))
    runs = {"speechkd": ours(case._replace(T=32), small), **dict(peers(case._replace(T=32), small))}
    runs[name]()
    del small, runs
    x = Inputs(case)
    run = {"speechkd": ours(case, x), **dict(peers(case, x))}[name]
    ctypes.CDLL(None).malloc_trim(0)  # what making the inputs has freed is not there to be used
    return peak_of_this(run)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    names = list(dict.fromkeys(name for result in results for name in result["seconds"] if name != "floor"))
    lines = ["| floor over theirs (extra MiB) | floor, s | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for result in results:
        seconds, memory = result["seconds"], result["memory_mib"]
        cells = [f"{seconds['floor'] / seconds[n]:.2f} ({memory[n]:,.0f})" if n in seconds else "" for n in names]
        lines.append(f"| {result['case']} | {seconds['floor']:.3f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table; `--json FILE` keeps all figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.heads")
    parser.add_argument("cases", nargs="*", default=list(CASES), help="of: " + ", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", action="store_true", help="beside torch eager and nobody else: the large sizes take minutes a peer")
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    if options.memory:
        print(peak(CASES[options.memory[0]], options.memory[1]))
        return
    results = []
    for name in options.cases:
        if CASES[name].dtype == "bfloat16" and not bf16_products():
            print(f"bench: {name} not measured: this CPU has no bfloat16 products", file=sys.stderr)
            continue
        results.append(measure(CASES[name], options.rounds, options.alone))
        print(table(results[-1:]).splitlines()[-1], flush=True)
    machine = f"{os.cpu_count()} cores ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"
    print(f"\n{time.strftime('%Y-%m-%d')}, {machine}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}\n")
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
