"""GPUs, their driver, and whether torch can use them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from speechkd.cluster.profile import ClusterProfile
from speechkd.stages.doctor.finding import Finding

GIB = 2**30
SHARED_MEMORY_GIB = 1.0
"""NCCL passes data between the GPUs of a node through /dev/shm; containers often have 64 MiB"""


def check_gpus(profile: ClusterProfile | None) -> list[Finding]:
    """One line for each GPU and one for the driver; what the profile promises is compared."""
    import torch

    driver = driver_version()
    if not torch.cuda.is_available():
        return _without(torch.version.cuda, driver, profile)
    found = [Finding("driver", "ok", f"{driver or 'unknown'}, torch was built for CUDA {torch.version.cuda}")]
    count = torch.cuda.device_count()
    for index in range(count):
        found.append(_gpu(index, profile))
    if profile is not None and profile.gpus_per_node and count != profile.gpus_per_node:
        text = f"{count} here, the profile says {profile.gpus_per_node} per node"
        found.append(Finding("gpus", "warn", text, "ask SLURM for all of a node, or correct `gpus_per_node`"))
    if count > 1 and (size := _shared_memory_gib()) is not None and size < SHARED_MEMORY_GIB:
        found.append(Finding("gpus", "warn", f"/dev/shm has {size:.2f} GiB", "give the container more (`--shm-size`, `--ipc=host`)"))
    return found


def _without(built_for: str | None, driver: str | None, profile: ClusterProfile | None) -> list[Finding]:
    if driver is not None:
        why = "torch is a CPU build" if built_for is None else f"torch, built for CUDA {built_for}, cannot use it"
        return [
            Finding("gpus", "fail", f"driver {driver} is here, but {why}", "install a torch that fits the driver (`make setup TORCH=...`)")
        ]
    if profile is not None and profile.gpus_per_node:
        text = f"none here, the profile says {profile.gpus_per_node} per node"
        return [Finding("gpus", "warn", text, "run doctor in an allocation: `srun --nodes 2 --gpus-per-node 8 --ntasks-per-node 8 ...`")]
    return [Finding("gpus", "ok", "none: ranks run on CPUs with gloo")]


def _gpu(index: int, profile: ClusterProfile | None) -> Finding:
    import torch

    name = torch.cuda.get_device_name(index)
    try:
        free, total = (value / GIB for value in torch.cuda.mem_get_info(index))
    except RuntimeError as error:
        return Finding(f"gpu {index}", "fail", f"{name}: {str(error).splitlines()[0]}", "see `nvidia-smi`; another job may hold it")
    text = f"{name}, {total:.0f} GiB, {free:.0f} free"
    if not torch.cuda.is_bf16_supported():
        return Finding(f"gpu {index}", "warn", f"{text}, no bf16", "set `student.dtype: float32`")
    if free < 0.9 * total:
        return Finding(f"gpu {index}", "warn", text, "another process uses it: see `nvidia-smi`")
    promised = profile.gpu_memory_gib if profile is not None else None
    if promised is not None and total < 0.9 * promised:
        return Finding(f"gpu {index}", "warn", f"{text}; the profile says {promised:g} GiB", "correct `gpu_memory_gib`")
    return Finding(f"gpu {index}", "ok", text)


def driver_version() -> str | None:
    """NVIDIA's driver on this machine, or None."""
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        except (subprocess.TimeoutExpired, OSError):
            return "that does not answer"
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.split()[0]
    module = Path("/sys/module/nvidia/version")
    return module.read_text(encoding="utf-8").strip() if module.is_file() else None


def _shared_memory_gib() -> float | None:
    try:
        return shutil.disk_usage("/dev/shm").total / GIB
    except OSError:
        return None
