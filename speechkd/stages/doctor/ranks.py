"""What the processes of an allocation find out together: an all-reduce, and a shared folder and clocks seen from every node.

Runs in processes that torchrun or srun started, or as `python -m speechkd.stages.doctor.ranks FOLDER RESULT` in two that doctor starts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist

from speechkd.core.files import read_json, write_json
from speechkd.stages.doctor.across_nodes import check_across_nodes
from speechkd.stages.doctor.finding import Finding
from speechkd.stages.doctor.network import address_of, usable
from speechkd.tracking.sampler import node_name

CHECK = "all-reduce"
JOIN_S = 60.0
"""Seconds to wait for the other processes"""
MEGABYTES = {"gloo": 16, "nccl": 256}
ROUNDS = 5
NODES_SHOWN = 8
WAY_OUT = "set `socket_ifname` in the profile; NCCL_DEBUG=INFO says more"


def launched() -> tuple[int, int, int] | None:
    """(rank, ranks, rank on this node) where torchrun or srun started this process as one of several; else None."""
    env = os.environ
    for rank, world, local in (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")):
        if rank in env and int(env.get(world, "1")) > 1:
            return int(env[rank]), int(env[world]), int(env.get(local, "0"))
    return None


def join(folder: Path, interface: str | None) -> None:
    """Form a group with the other processes; under srun rank 0's address travels through `folder`. Raises OSError, RuntimeError."""
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    here = launched()
    assert here is not None, "join is for processes that torchrun or srun started"
    rank, world, local = here
    wait = timedelta(seconds=JOIN_S)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
    if "RANK" in os.environ:
        torch_dist.init_process_group(backend, timeout=wait)
        return
    step = f"{os.environ.get('SLURM_JOB_ID', '0')}-{os.environ.get('SLURM_STEP_ID', '0')}"
    note = folder / f".speechkd-doctor-{step}.json"
    if rank == 0:
        store = torch_dist.TCPStore("0.0.0.0", 0, world, is_master=True, timeout=wait, wait_for_workers=False)
        write_json(note, {"host": _own_address(interface), "port": store.port})
    else:
        place = _wait_for(note)
        store = torch_dist.TCPStore(place["host"], place["port"], world, is_master=False, timeout=wait)
    try:
        torch_dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=wait)
    finally:
        if rank == 0:
            note.unlink(missing_ok=True)


def _own_address(interface: str | None) -> str:
    names = [interface] if interface else usable()
    return next((found for name in names if (found := address_of(name))), "127.0.0.1")


def _wait_for(note: Path) -> Any:
    end = time.monotonic() + JOIN_S
    while not note.is_file():
        if time.monotonic() > end:
            raise OSError(f"rank 0's note did not appear in `{note.parent}` within {JOIN_S:.0f} s: is it shared by all nodes?")
        time.sleep(0.2)
    return read_json(note)


def check_all_reduce() -> list[Finding]:
    """Sum a tensor over all ranks, on GPUs where there are any, and say how fast. Every rank must call it."""
    rank, world = torch_dist.get_rank(), torch_dist.get_world_size()
    gpu = torch.cuda.is_available()
    backend = "nccl" if gpu else "gloo"
    size = MEGABYTES[backend] << 20
    device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    values = torch.empty(size // 4, device=device)
    fastest, right = float("inf"), True
    for _ in range(ROUNDS):
        values.fill_(rank + 1)
        torch_dist.barrier()
        began = time.perf_counter()
        torch_dist.all_reduce(values)
        right &= bool((values == world * (world + 1) / 2).all())  # also waits for the GPU
        fastest = min(fastest, time.perf_counter() - began)
    nodes = len(set(gathered(node_name())))
    bus = 2 * (world - 1) / world * size / fastest / 1e9
    text = (
        f"{backend}, {world} ranks on {nodes} node{'s' if nodes > 1 else ''}: {size >> 20} MiB in {1000 * fastest:.1f} ms ({bus:.1f} GB/s)"
    )
    if not right:
        return [Finding(CHECK, "fail", f"{text}, and the sum is wrong", "a GPU or a link is damaged: test each node alone")]
    return [Finding(CHECK, "ok", text)]


def gathered(value: Any) -> list[Any]:
    """A JSON value of every rank, on every rank."""
    data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
    world = torch_dist.get_world_size()
    length_R = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
    torch_dist.all_gather(length_R, torch.tensor([data.numel()]))
    longest = max(int(length) for length in length_R)
    padded_R = [torch.zeros(longest, dtype=torch.uint8) for _ in range(world)]
    torch_dist.all_gather(padded_R, torch.nn.functional.pad(data, (0, longest - data.numel())))
    return [json.loads(bytes(padded[: int(length)].tolist())) for padded, length in zip(padded_R, length_R, strict=True)]


def of_all_nodes(own: list[Finding]) -> list[Finding]:
    """This node's findings, and those of the other nodes that are not ok, each said once. Every rank must call it."""
    here = node_name()
    answers = gathered([here, [asdict(finding) for finding in own]])
    nodes = list(dict.fromkeys(node for node, _ in answers))
    found = {}
    for node, records in answers:
        for record in records if node != here else []:
            if record["level"] != "ok":
                found[node, record["check"], record["text"]] = Finding(**{**record, "node": node})
    names = ", ".join(nodes[:NODES_SHOWN]) + (f" and {len(nodes) - NODES_SHOWN} more" if len(nodes) > NODES_SHOWN else "")
    said = f"{len(nodes)} with {len(answers)} processes: {names}"
    return [
        Finding("nodes", "ok", f"{said}; lines without a name are {here}'s, the others add what is not ok there"),
        *own,
        *found.values(),
    ]


def check_together(folder: Path, interface: str | None) -> list[Finding]:
    """Join, reduce, and look at the shared folder from every node. Raises nothing that the network causes."""
    try:
        join(folder, interface)
        return [*check_all_reduce(), *check_across_nodes(folder, gathered)]
    except (RuntimeError, OSError) as error:
        return [Finding(CHECK, "fail", f"the ranks do not reach each other: {' '.join(str(error).split())[:200]}", WAY_OUT)]


def main() -> None:
    """One of the processes that doctor starts on one machine: rank 0 leaves what they found in a file."""
    folder, result = Path(sys.argv[1]), Path(sys.argv[2])
    found = check_together(folder, None)
    if (launched() or (0,))[0] == 0:
        write_json(result, [asdict(finding) for finding in found])
    if torch_dist.is_initialized():
        torch_dist.barrier()
        torch_dist.destroy_process_group()


if __name__ == "__main__":
    main()
