"""Triton: whether it can run here, and with which blocks and warps each kernel is launched. Imports without Triton.

Nothing is tuned while a training runs: ranks would choose differently, and the first step of every new shape would wait. The tables are
chosen for Hopper from what the compiler reports (registers, spills, shared memory; `tests/kernels/test_triton_hopper.py`).
"""

from __future__ import annotations

import importlib.util
import os
from typing import NamedTuple

import torch
from torch import Tensor

from speechkd.core.errors import InputError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels read and write; they compute in float32"""


class Launch(NamedTuple):
    """One row of a table: for widths up to `width`."""

    width: int
    block: int
    """elements of a row that one program holds at a time"""
    num_warps: int
    num_stages: int = 1
    """no kernel here feeds a matrix product: what hides the latency of memory is several programs on one multiprocessor"""
    spills: str = ""
    """why registers spill, where they do"""


ANY = 2**31 - 1
WHOLE = "1024 threads have 64 registers each, and a stack (15 frames of whisper-large) is held whole, so that its states are read once"
LAUNCH: dict[str, tuple[Launch, ...]] = {
    # width: size of the vocabulary
    "cross_entropy": (Launch(1024, 1024, 4), Launch(16_384, 4096, 8), Launch(ANY, 8192, 16)),
    "topk_kl": (Launch(1024, 1024, 4), Launch(ANY, 4096, 8)),  # 8192 by 16 warps spills under a soft cap
    "teacher_topk": (Launch(1024, 1024, 4), Launch(16_384, 4096, 8), Launch(ANY, 8192, 16)),
    # two rows at once, and up to four accumulators: 4096 by 16 warps spills with the JSD
    "kl": (Launch(1024, 1024, 4), Launch(ANY, 2048, 8)),
    # width: frames of a stack x columns, each brought to a power of two: one program holds them all
    "stack_norm": (
        Launch(1024, 1024, 4),
        Launch(4096, 4096, 8),
        Launch(8192, 8192, 16),
        Launch(16_384, 16_384, 16),
        Launch(32_768, 32_768, 32, spills=WHOLE),
    ),
    # width: H
    "activation": (Launch(ANY, 1024, 4),),
}
"""The one table of each kernel, narrowest first"""


def launch(kernel: str, width: int) -> Launch:
    """The row of `kernel`'s table for this width. Raises InputError where the width is beyond it."""
    for row in LAUNCH[kernel]:
        if width <= row.width:
            return row
    raise InputError(f"the Triton kernel `{kernel}` holds up to {LAUNCH[kernel][-1].width} values a row, given {width}; take impl: packed")


def power_of_two(n: int) -> int:
    """The least power of two that is at least n: the size of a block."""
    return 1 << max(n - 1, 0).bit_length()


def interpreted() -> bool:
    """Whether Triton is asked to run its kernels in Python, on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def obstacle(tensor: object) -> str | None:
    """Why Triton cannot run on this tensor, or None."""
    assert isinstance(tensor, Tensor)
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not tensor.is_cuda and not interpreted():
        where = "the tensors are on the CPU" if torch.cuda.is_available() else "no CUDA device"
        return f"{where}; set TRITON_INTERPRET=1 to interpret"
    return None if tensor.dtype in DTYPES else f"it computes in float32, the input is {tensor.dtype}"


def check_rows_tensor(tensor: Tensor, name: str) -> None:
    """Raises InputError unless a kernel can walk the rows of `tensor`."""
    if tensor.dim() != 2 or tensor.dtype not in DTYPES or (tensor.shape[1] > 1 and tensor.stride(1) != 1):
        raise InputError(f"{name} must be rows of float32, bfloat16 or float16, is {tensor.dtype}, {list(tensor.shape)}, {tensor.stride()}")
