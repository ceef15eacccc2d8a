"""Kernels beside their floors and peers on one GPU: `make bench-gpu`, one call, at most eight minutes on an H200.

Ceilings first, then correctness against float64, then timing; prints markdown and writes JSON. Without a CUDA device it exits with code 2.
`--device cpu --tiny` runs the same control flow on small shapes, for its test: those figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from speechkd.kernels.linear_cross_entropy.triton_rows import cross_entropy_rows_
from speechkd.kernels.linear_kl.divergence import DIVERGENCES, Divergence
from speechkd.kernels.linear_kl.triton_rows import kl_rows_
from speechkd.kernels.linear_topk_kl.reference import topk_kl_rows
from speechkd.kernels.linear_topk_kl.target import teacher_target
from speechkd.kernels.linear_topk_kl.triton_rows import topk_kl_rows_
from tests.bench.gpu_cases import TINY, Heads, Projector, Sizes, ce_table, dense_table, gradient, plain, projector_table, sparse_table
from tests.bench.gpu_timer import Row, Timer, ceilings

SECONDS = 400.0
"""After this no new round begins: what compiles and fills caches comes on top"""
RESULT = Path("bench-gpu.json")


def _near(name: str, ours: Tensor, truth: Tensor, allowed: float) -> float:
    """Relative error. Raises SystemExit beyond `allowed`: a wrong result must not be timed."""
    error = ((ours.double() - truth.double()).norm() / truth.double().norm().clamp(min=1e-30)).item()
    if not error <= allowed:
        raise SystemExit(f"bench-gpu: {name} is wrong: relative error {error:.2e}, allowed {allowed:.0e}; nothing was timed")
    return error


def correctness(s: Sizes, device: torch.device) -> dict[str, float]:
    """Relative errors against float64 of every row kernel and op, on few rows of the full width."""
    h = Heads.make(s.checked, s, device)
    errors: dict[str, float] = {}

    def rows(name: str, kernel: Callable[[Tensor], Tensor], truth: Callable[[Tensor], Tensor]) -> None:
        logits_CV = h.hidden_TD @ h.weight_VD.T
        leaf_CV = logits_CV.double().requires_grad_()
        truth_C = truth(leaf_CV)
        (truth_grad_CV,) = torch.autograd.grad(truth_C.sum(), leaf_CV)
        errors[f"{name}: value"] = _near(f"{name}: value", kernel(logits_CV), truth_C.detach(), 1e-4)
        errors[f"{name}: gradient"] = _near(f"{name}: gradient", logits_CV, truth_grad_CV, 1e-2)

    rows(
        "cross_entropy rows",
        lambda z: cross_entropy_rows_(z, h.targets_T, None, True),
        lambda z: torch.nn.functional.cross_entropy(z, h.targets_T, reduction="none"),
    )
    for tail in ("bucket", "renormalise"):
        target, exact = (
            teacher_target(h.ids_TK, h.logp_TK, h.tail_logp_T, tail, s.vocabulary, kind) for kind in (torch.float32, torch.float64)
        )
        rows(
            f"topk_kl rows, {tail}",
            lambda z, target=target: topk_kl_rows_(z, target, 1.0, None, True),  # type: ignore[misc]
            lambda z, exact=exact: topk_kl_rows(z, exact, 1.0),  # type: ignore[misc]
        )
    teacher_CU = h.teacher_TD @ h.teacher_weight_VD.T
    for name in DIVERGENCES:
        how = Divergence(name=name)
        rows(
            f"{name} rows",
            lambda z, how=how: kl_rows_(z, teacher_CU, how, None, None, True),  # type: ignore[misc]
            lambda z, how=how: how.rows(z, teacher_CU.double()),  # type: ignore[misc]
        )
    wide = Heads(*(x.double() if x.is_floating_point() else x for x in vars(h).values()))
    for name, ours, truth in (
        ("linear_topk_kl", h.sparse(), wide.sparse("reference")),
        ("linear_kl", h.dense("forward_kl"), wide.dense("forward_kl", "reference")),
        ("linear_cross_entropy", h.ce(), wide.ce("reference")),
    ):
        value, grad_TD = gradient(ours, h.hidden_TD)
        truth_value, truth_TD = gradient(truth, wide.hidden_TD)
        errors[f"{name}: value"] = _near(f"{name}: value", value, truth_value, 1e-2)
        errors[f"{name}: gradient"] = _near(f"{name}: gradient", grad_TD, truth_TD, 3e-2)
    return errors


def projector_errors(p: Projector) -> dict[str, float]:
    """Relative differences of output and gradients from torch's modules in the same type."""
    names = ("output", "in_weight", "in_bias", "out_weight", "out_bias", "norm_weight", "norm_bias")
    pairs = zip(names, p.ours(), p.run(plain), strict=True)
    return {f"stack_norm_mlp: {name}": _near(f"stack_norm_mlp: {name}", ours, truth, 3e-2) for name, ours, truth in pairs}


def markdown(title: str, rows: list[Row], floor: str) -> str:
    """One table; every time beside the first row that `floor` names."""
    base = next((row.ms for row in rows if row.name == floor), None)
    lines = [f"\n### {title}\n", f"| | ms | {floor} ÷ it | peak MiB | |", "|---|---|---|---|---|"]
    for row in rows:
        ms = "not measured" if row.ms is None else f"{row.ms:.3f}"
        ratio = "" if row.ms is None or base is None else f"{base / row.ms:.2f}"
        lines.append(f"| {row.name} | {ms} | {ratio} | {'' if row.peak_mib is None else f'{row.peak_mib:.0f}'} | {row.note} |")
    return "\n".join(lines)


def bench(s: Sizes, device: torch.device, rounds: int) -> dict[str, object]:
    """Prints as it goes; returns all of it."""
    timer = Timer(device, rounds, time.monotonic() + SECONDS)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    print(f"## {name}, torch {torch.__version__}, {date.today()}\n")
    machine = ceilings(timer, s.product)
    print(f"bf16 product {machine['product_tflops']:.3g} TFLOP/s, copy {machine['copy_tbs']:.3g} TB/s (read and written)", flush=True)
    errors = {**correctness(s, device), **projector_errors(Projector(s, device))}
    worst = max(errors, key=lambda key: errors[key])
    print(f"\n{len(errors)} values and gradients agree; the largest relative error is {errors[worst]:.1e} ({worst})", flush=True)

    tables: dict[str, list[Row]] = {}

    def show(title: str, rows: list[Row], floor: str) -> None:
        tables[title] = rows
        print(markdown(title, rows, floor), flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()

    head = f"{s.width} x {s.vocabulary:,}, bf16, forward and backward, frozen head"
    h = Heads.make(s.tokens, s, device)
    show(f"Top-{s.kept} KL, {s.tokens} x {head}", timer.table(sparse_table(h)), "two torch.mm")
    show(f"Cross-entropy, {s.tokens} x {head}", timer.table(ce_table(h)), "two torch.mm")
    for tokens in s.dense_tokens:
        h = Heads.make(tokens, s, device)
        show(f"Dense divergence, {tokens} x {head}", timer.table(dense_table(h)), "three torch.mm")
    del h
    p = Projector(s, device)
    shape = f"B {s.batch}, {s.frames} frames of {s.encoder_width}, k {s.stack}, hidden {s.hidden}"
    show(f"Projector, {shape}, frozen encoder", timer.table(projector_table(p)), "torch")
    return {
        "machine": name,
        "torch": torch.__version__,
        "date": str(date.today()),
        "ceilings": machine,
        "errors": errors,
        "tables": {title: [vars(row) for row in rows] for title, rows in tables.items()},
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description="kernels beside their floors and peers on one GPU")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="small shapes and three rounds: tries the flow, measures nothing")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--look", action="store_true", help="only say whether it can run here")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench-gpu: no CUDA device here; the kernels' correctness is tested without one by `make test`", file=sys.stderr)
        return 2
    if options.look:
        return 0
    found = bench(TINY if options.tiny else Sizes(), torch.device(options.device), 3 if options.tiny else options.rounds)
    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
