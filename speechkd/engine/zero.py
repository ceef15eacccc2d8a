"""ZeRO helpers: starts the process group (torchrun or one process), and creates, reads and gathers partitioned parameters."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as torch_dist
from torch import nn

from speechkd.core.errors import InputError
from speechkd.core.tensors import Stored, read_into

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read once, when deepspeed is imported

GROUP_TIMEOUT_S = 1800.0
_QUIET = ("DeepSpeed", "deepspeed", "torch.distributed.distributed_c10d")


def _quiet() -> None:
    """Silence a FutureWarning per collective and a page of engine settings per rank."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|deepspeed")
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


@contextlib.contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Make an optional package look absent while another one is imported; one that is imported already stays as it is."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


def _import_muon_plainly() -> None:
    """Import the optimizer Muon, as DeepSpeed's ZeRO does, without its `torch.compile`: nothing here uses it.

    Compiling three functions loads torch's whole compiler, which takes a rank longer than DeepSpeed itself.
    """
    from deepspeed.runtime import compiler

    original = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        compiler.compile = original


def import_deepspeed() -> Any:
    """DeepSpeed, imported once and quietly, without the compiled shared-memory collectives that it would build on a CPU machine.

    Its autotuner, which nothing here uses, imports MLflow wherever that is installed: half of the time that a rank needs to start.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with warnings.catch_warnings(), _hidden("mlflow"):
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops

        _import_muon_plainly()
    _quiet()
    compatible = getattr(deepspeed.ops, "__compatible_ops__", None)
    if compatible is not None and not torch.cuda.is_available():
        compatible["deepspeed_shm_comm"] = False  # otherwise every new machine compiles C++ for half a minute, or fails without a compiler
    return deepspeed


def init_distributed(timeout_s: float = GROUP_TIMEOUT_S) -> None:
    """Join torchrun's process group, or create a group of one without torchrun. A second call does nothing.

    CPU tensors use gloo and GPU tensors NCCL. A group of one opens no port. Call it before any module is created partitioned.
    """
    deepspeed = import_deepspeed()
    if not torch_dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        wait = timedelta(seconds=timeout_s)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 or "TORCHELASTIC_RUN_ID" in os.environ:
            _check_interface()
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            torch_dist.init_process_group(backend, timeout=wait)
        else:
            os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})  # deepspeed reads them
            torch_dist.init_process_group(backend, store=torch_dist.HashStore(), rank=0, world_size=1, timeout=wait)
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=torch_dist.get_backend(), auto_mpi_discovery=False, verbose=False)


def _check_interface() -> None:
    """On several nodes, gloo must not fall back to loopback, as it does where this host's name resolves to none of its addresses."""
    if int(os.environ["WORLD_SIZE"]) == int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])) or os.environ.get(
        "GLOO_SOCKET_IFNAME"
    ):
        return
    name = socket.gethostname()
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except OSError:
        found = set()
    if not any(not ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found):
        where = f"resolves to {', '.join(sorted(found))}" if found else "does not resolve"
        raise InputError(f"host name `{name}` {where}, where ranks of other nodes cannot reach it: set GLOO_SOCKET_IFNAME to its interface")


def close_distributed() -> None:
    """Leave the process group: every rank calls this when it finishes normally, since a rank that just exits may make others abort.

    Do not call it after an error: it waits for all ranks.
    """
    if torch_dist.is_initialized():
        torch_dist.barrier()
        torch_dist.destroy_process_group()
        # gloo's threads drop the tensors of finished collectives and need the interpreter for that; a thread that is still
        # busy when Python shuts down aborts the process (SIGABRT, seen in one run of five on busy cores). The sleep lets them finish.
        time.sleep(0.2)


def local_device() -> torch.device:
    """The device of this rank."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else torch.device("cpu")


def partitioned(
    ds_config: Mapping[str, Any] | None, dtype: torch.dtype = torch.float32, to_be_filled: bool = False
) -> AbstractContextManager[Any]:
    """Modules made inside are partitioned over all ranks as soon as each submodule's `__init__` returns, with rank 0's initial values.

    `ds_config`: from `read_ds_config`, None for a plain ZeRO-3; a stage below 3 partitions nothing. Tensors keep the dtype that the code
    asks for: DeepSpeed's own override would round rotary frequencies to bf16. `to_be_filled`: every value will be overwritten, so initial
    values do not travel between ranks (for a large model that would be its whole size, for nothing). Needs `init_distributed` first.
    """
    if ds_config is not None and ds_config["zero_optimization"]["stage"] < 3:
        return contextlib.nullcontext()
    deepspeed = import_deepspeed()
    from deepspeed.runtime.zero.partition_parameters import DeepSpeedTensorOverride

    assert deepspeed.comm.is_initialized(), "init_distributed comes before partitioned modules"
    zero = ds_config["zero_optimization"] if ds_config is not None else {"stage": 3}
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": dict(zero), "bf16": {"enabled": dtype == torch.bfloat16}}
    context: Any = deepspeed.zero.Init(config_dict_or_path=config, tensor_overrides=[DeepSpeedTensorOverride.device])
    if to_be_filled:

        def convert(param: Any) -> None:
            context._convert_to_deepspeed_param(param)
            param.partition()

        context._zero_init_param = convert  # the original also broadcasts; receiving touches every page of the whole tensor
    return cast(AbstractContextManager[Any], context)


def count_gathers() -> Callable[[], int]:
    """From now on, counts the all-gathers of ZeRO-3 in this process, a coalesced one as one; returns what reads the count."""
    from deepspeed.runtime.zero import partition_parameters

    gather: Any = partition_parameters._dist_allgather_fn
    if not hasattr(gather, "calls"):

        def counted(input_tensor: torch.Tensor, output_tensor: torch.Tensor, group: Any = None) -> Any:
            counted.calls += 1  # type: ignore[attr-defined]
            return gather(input_tensor, output_tensor, group=group)

        counted.calls = 0  # type: ignore[attr-defined]
        partition_parameters._dist_allgather_fn = counted
    return lambda: int(partition_parameters._dist_allgather_fn.calls)


def is_partitioned(param: torch.Tensor) -> bool:
    """True if `param` is partitioned by ZeRO-3, even if it is gathered now."""
    return hasattr(param, "ds_id")


def full_shape(param: torch.Tensor) -> torch.Size:
    """The shape of the whole parameter, partitioned or not."""
    return torch.Size(param.ds_shape) if is_partitioned(param) else param.shape  # type: ignore[attr-defined]


def read_partition(param: torch.Tensor, stored: Stored, dtype: torch.dtype) -> torch.Tensor:
    """This rank's flat slice of `stored`, partitioned like `param`, on the CPU; padding at the end of the last slice is zero."""
    size = param.ds_tensor.numel()  # type: ignore[attr-defined]
    start = size * param.ds_zero_partition_rank  # type: ignore[attr-defined]
    part = torch.zeros(size, dtype=dtype)
    count = max(0, min(size, stored.numel - start))
    if count:
        read_into(part[:count], stored, start)
    return part


def fill_partition(param: Any, stored: Stored) -> bool:
    """Read this rank's part of `stored` into a partitioned `param`.

    Returns False if only DeepSpeed can fill the part (secondary partition, quantized, on NVMe), or if `param` is gathered now.
    """
    part = param.ds_tensor
    if part.final_location is not None or param.ds_secondary_tensor is not None or hasattr(part, "ds_quant_scale") or param.numel():
        return False
    part.data.copy_(read_partition(param, stored, part.dtype))
    return True


def gathered(params: list[nn.Parameter], modifier_rank: int | None = None) -> AbstractContextManager[Any]:
    """Gather whole parameters inside the block; with `modifier_rank`, that rank's changes are kept on all ranks."""
    if not any(is_partitioned(p) for p in params):
        return contextlib.nullcontext()
    context: AbstractContextManager[Any] = import_deepspeed().zero.GatheredParameters(params, modifier_rank=modifier_rank)
    return context


def partition_report(module: nn.Module) -> dict[str, bool]:
    """Parameter name -> whether it is whole on this rank now. Between steps with threshold 0 none is, except in unwrapped modules."""
    return {name: p.shape == full_shape(p) for name, p in module.named_parameters()}
