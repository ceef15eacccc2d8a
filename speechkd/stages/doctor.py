"""`speechkd doctor`: prints what this machine has, what is missing, and which packages are too old."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement


def doctor() -> int:
    """Print one fact per line; exit code 1 if a package that speechkd needs is missing or too old."""
    import psutil

    problems = 0
    print(f"python       {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"cores        {len(os.sched_getaffinity(0))}, memory {psutil.virtual_memory().total / 2**30:.0f} GiB")
    print(f"disk         {shutil.disk_usage('.').free / 2**30:.0f} GiB free here")
    for text in requires("speechkd") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue  # for another platform, or for an optional extra
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = ""
        good = bool(found) and requirement.specifier.contains(found, prereleases=True)
        problems += not good
        print(f"{requirement.name:<18} {found or 'missing'}{'' if good else f'  <- needs {requirement.specifier}'}")
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            print(f"gpu {index}        {torch.cuda.get_device_name(index)}")
    else:
        print("gpu          none: CPU with gloo")
    for tool in ("sbatch", "git"):
        print(f"{tool:<12} {shutil.which(tool) or 'not found'}")
    return 1 if problems else 0
