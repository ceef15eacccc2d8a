"""Compiles every Triton kernel for Hopper (sm_90) at every row of its launch table, without a GPU.

`python -m tests.kernels.triton_aot [TABLE ...]`

Prints one JSON object a line: the kernel, its row of the table, bytes of shared memory, registers, spilled bytes, and whether its
matrix products use the tensor cores. Not for pytest's own process, where Triton interprets.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from speechkd.kernels.layer_sum import triton_kernel as prologue
from speechkd.kernels.linear_cross_entropy import triton_kernel as cross_entropy
from speechkd.kernels.linear_kl import triton_kernel as kl
from speechkd.kernels.linear_topk_kl import triton_kernel as topk_kl
from speechkd.kernels.stack_norm_mlp import triton_kernel as projector
from speechkd.kernels.triton_launch import LAUNCH, Launch

LONG = {"stride", "teacher_stride", "z_stride", "up_stride", "out_stride", "grad_stride", "frame_stride"}
FLOATS = {"softcap", "teacher_softcap", "temperature", "factor", "log_wp", "log_wq", "eps", "layer_eps"}
INTS = {"V", "W", "U", "K", "L", "C", "H", "k"}
POINTERS = {
    "ids": "*i64", "targets": "*i64", "valid": "*i1", "shared": "*i1", "logp": "*fp32", "tail_logp": "*fp32", "values": "*fp32",
    "layers": "*i64", "starts": "*i64", "frames": "*i32", "weights": "*fp32", "means": "*fp32", "rstds": "*fp32", "weight_grads": "*fp32",
}  # fmt: skip
"""Other pointers are bfloat16: logits, states, activations"""


def forms(name: str, row: Launch) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(kernel, its compile-time arguments): the largest code that each row of the table can mean."""
    if name == "cross_entropy":
        yield cross_entropy.cross_entropy, {"WANT_GRAD": True, "CAPPED": True, "BLOCK": row.block}
    if name == "topk_kl":
        flags = {"RENORMALISE": False, "BUCKET": True, "WANT_GRAD": True, "CAPPED": True}
        yield topk_kl.topk_kl, {**flags, "BLOCK_K": 128, "BLOCK": row.block}
        yield topk_kl.topk_kl, {**flags, "BLOCK_K": 1, "BLOCK": row.block, "K": 1}  # a launch makes an argument that is 1 a constant
    if name == "teacher_topk":
        yield topk_kl.teacher_topk, {"CAPPED": True, "BLOCK_K": 128, "BLOCK": row.block}
    if name == "kl":
        flags = {"WANT_GRAD": True, "CAPPED": True, "TEACHER_CAPPED": True, "SOME_SHARED": True, "BLOCK": row.block}
        for kind in (kl.FORWARD, kl.REVERSE, kl.JSD, kl.SKEW, kl.SKEW_REVERSE):
            yield kl.kl, {"KIND": kind, **flags}
    if name == "stack_norm":
        for frames, per_frame in ((1, False), (16, False), (16, True)):
            flags = {
                "NORM": prologue.LAYER_NORM,
                "PER_FRAME": per_frame,
                "NORMALISE": frames == 1,
                "ALIGNED": True,
                "FRAMES": frames,
                "BLOCK_C": row.block // frames,
            }
            flags |= {"k": 1} if frames == 1 else {}  # as the sum of layers has it; a launch makes an argument that is 1 a constant
            yield prologue.stack_norm, {"MIXED": True, **flags}
            yield prologue.stack_norm_backward, {"WANT_INPUT": True, "WANT_WEIGHTS": True, **flags}
    if name == "activation":
        flags = {"KIND": projector.GELU, "BIASED": True, "UP_BIASED": True, "GATED": True, "BLOCK": row.block}
        yield projector.activate, flags
        yield projector.activate_backward, flags


def compiled(kernel: Any, constants: dict[str, Any], row: Launch, whole: bool = True) -> dict[str, Any]:
    """What the compiler and ptxas say. `whole`: row lengths are multiples of 16, as real vocabularies are."""
    names = [parameter.name for parameter in kernel.params]
    kinds = {**dict.fromkeys(LONG, "i64"), **dict.fromkeys(FLOATS, "fp32"), **dict.fromkeys(INTS, "i32"), **POINTERS}
    signature = {name: "constexpr" if name in constants else kinds.get(name, "*bf16") for name in names}
    aligned = [i for i, name in enumerate(names) if signature[name][0] == "*" or whole and name in LONG | {"V", "W", "U", "C", "H"}]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": row.num_warps, "num_stages": row.num_stages}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(made.asm["ptx"], encoding="utf-8")
        said = subprocess.run(
            [get_ptxas(90).path, "-v", "-arch=sm_90a", ptx, "-o", "/dev/null"], capture_output=True, text=True, check=True
        ).stderr
    return {
        "shared": made.metadata.shared,
        "registers": max(map(int, re.findall(r"Used (\d+) registers", said))),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", said))),
        "products": "tt.dot" in made.asm["ttir"],
        "wgmma": "wgmma" in made.asm["ptx"],
        "wide_loads": bool(re.search(r"ld\.global\S*\.v4", made.asm["ptx"])),
    }


def main(names: list[str]) -> None:
    for name in names or LAUNCH:
        for row in LAUNCH[name]:
            for kernel, constants in forms(name, row):
                said = compiled(kernel, constants, row)
                print(json.dumps({"table": name, "kernel": kernel.__name__, **row._asdict(), **constants, **said}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
