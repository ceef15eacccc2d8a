"""`speechkd doctor`: runs every check on this machine, or on every process of the allocation that runs it, and prints one line each."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from speechkd.cluster.local import run_ranks
from speechkd.cluster.profile import ClusterProfile, read_profile
from speechkd.core.config import build
from speechkd.core.errors import EXIT_FAILED, InputError
from speechkd.core.files import read_json
from speechkd.recipe import Recipe
from speechkd.stages.doctor.finding import Finding, bounded
from speechkd.stages.doctor.gpus import check_gpus
from speechkd.stages.doctor.kernels import check_kernels
from speechkd.stages.doctor.machine import check_disk, check_machine
from speechkd.stages.doctor.mlflow_server import check_mlflow
from speechkd.stages.doctor.network import check_interface
from speechkd.stages.doctor.packages import check_packages
from speechkd.stages.doctor.shared_folder import check_shared_folder
from speechkd.stages.doctor.store import check_store
from speechkd.stages.run_folder import RECIPE, run_recipe
from speechkd.tracking import TrackingConfig

TRACKING_URI = "MLFLOW_TRACKING_URI"


def doctor(
    run_folder: Path | None = None,
    cluster: str | None = None,
    recipe: Recipe | None = None,
    mlflow: str | None = None,
    store: str | None = None,
    as_json: bool = False,
) -> int:
    """Print findings; exit code 1 if any is a failure.

    `run_folder`: where runs are written, and whose recipe, if it holds one, says where MLflow and the shards are; `cluster`: a profile's
    name or file. `recipe`, `mlflow` and `store` name these places directly. Under torchrun or srun all call it; rank 0 prints.
    """
    profile = read_profile(cluster) if cluster is not None else None
    shared = run_folder or Path(profile.shared if profile is not None else ".")
    if not shared.is_dir():
        raise InputError(f"no such folder `{shared}`: make it, or name another ({'--run-folder' if run_folder else 'profile: shared'})")
    if recipe is None and (shared / RECIPE).is_file():
        recipe = run_recipe(shared)
    uri = mlflow or (recipe.tracking.uri if recipe is not None else None) or os.environ.get(TRACKING_URI)
    uri = build(TrackingConfig, {"uri": uri}, "--mlflow" if mlflow else TRACKING_URI).uri
    found = _this_machine(profile, shared)
    found += _places(uri, store or (recipe.data.root if recipe is not None else None))
    found, speaks = _together(found, profile, shared)
    if speaks:
        _print(found, as_json)
    return EXIT_FAILED if any(finding.level == "fail" for finding in found) else 0


def _this_machine(profile: ClusterProfile | None, shared: Path) -> list[Finding]:
    scratch = Path(profile.scratch if profile is not None else tempfile.gettempdir())
    checks: dict[str, Callable[[], list[Finding]]] = {
        "machine": lambda: check_machine(profile is not None),
        "packages": check_packages,
        "gpus": lambda: check_gpus(profile),
        "kernels": check_kernels,
        "interface": lambda: check_interface(profile),
        "shared disk": lambda: check_disk("shared disk", shared),
        "scratch disk": lambda: check_disk("scratch disk", scratch),
        "shared folder": lambda: check_shared_folder(shared),
    }
    return [finding for name, check in checks.items() for finding in bounded(name, check)]


def _places(uri: str | None, store: str | None) -> list[Finding]:
    found = bounded("mlflow", lambda: check_mlflow(uri))
    if store is not None and "://" in store:
        found += bounded("object store", lambda: check_store(store))
    return found


def _together(own: list[Finding], profile: ClusterProfile | None, shared: Path) -> tuple[list[Finding], bool]:
    """(findings of all processes, whether this one prints): those of the allocation, or of processes started here for the purpose."""
    from speechkd.stages.doctor.ranks import CHECK, WAY_OUT, check_together, launched, of_all_nodes

    here = launched()
    if here is not None:
        import torch.distributed as torch_dist

        common = check_together(shared, profile.socket_ifname if profile is not None else None)
        if any(finding.check == CHECK and finding.level == "fail" for finding in common):
            return [*own, *common], True  # who cannot reach rank 0 speaks for itself
        found = [*of_all_nodes(own), *common]
        torch_dist.barrier()
        torch_dist.destroy_process_group()
        return found, here[0] == 0
    with tempfile.TemporaryDirectory(prefix="speechkd-doctor-") as folder:
        result = Path(folder) / "found.json"
        run_ranks(["-m", "speechkd.stages.doctor.ranks", str(shared.resolve()), str(result)], _ranks_here())
        if not result.is_file():
            return [*own, Finding(CHECK, "fail", "the processes started for it ended without an answer", WAY_OUT)], True
        return [*own, *(Finding(**record) for record in read_json(result))], True


def _ranks_here() -> int:
    import torch

    return max(torch.cuda.device_count(), 1 if torch.cuda.is_available() else 2)


def _print(found: list[Finding], as_json: bool) -> None:
    if as_json:
        levels = [finding.level for finding in found]
        counts = {level: levels.count(level) for level in ("ok", "warn", "fail")}
        print(json.dumps({"host": socket.gethostname(), "counts": counts, "findings": [f.record() for f in found]}, indent=1))
        return
    for finding in found:
        print(finding.line())
