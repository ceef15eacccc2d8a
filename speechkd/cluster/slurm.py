"""The batch scripts of a run: a pure function from site profile and job to the text that sbatch reads.

What stands in a directive is checked by pattern; everything else is a word quoted for the shell. Nothing of the environment and nothing of
the profile's `env_file` is copied: that file is read on each node.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from speechkd.cluster.profile import ClusterProfile, StageResources
from speechkd.core.errors import EXIT_REQUEUE, InputError

Stage = Literal["shard", "teach", "train", "eval"]
STAGES: tuple[Stage, ...] = ("shard", "teach", "train", "eval")
SMALL_TASK_CPUS = 8
"""CPUs of a task without a GPU where the profile does not say"""
WAIT_S = 180
"""Seconds that the other nodes get to end after the first one: a checkpoint is being written, MLflow gets the last points"""
MOST_RESTARTS = 50
"""Time limits that a task of an array may meet before it counts as failed"""
_PATH = re.compile(r"/[A-Za-z0-9_./@+:-]*")
"""A folder that may stand in a directive. SLURM expands `%`; a quote or a line end would end the word."""
_MEBIBYTES = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}

_templates = Environment(
    loader=PackageLoader("speechkd.cluster"),
    undefined=StrictUndefined,
    autoescape=False,  # shell text: every value goes through `quote`
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_templates.filters["quote"] = shlex.quote


@dataclass(frozen=True, slots=True)
class Job:
    """One submission: a stage of a run, perhaps as an array."""

    stage: Stage
    name: str
    """unique in the run, the name of its script: `train`, `shard-minibabel`"""
    command: tuple[str, ...]
    """what a task runs; an array's task gets its partition after the last word, training its rendezvous"""
    nodes: int = 1
    partitions: int = 0
    """for an array: N of `--partition I/N`"""
    tasks: tuple[int, ...] = ()
    """for an array: the partitions to do"""

    @property
    def array(self) -> str:
        """As SLURM writes it: `0-3,7`; empty for a plain job."""
        return _ranges(self.tasks)


@dataclass(frozen=True, slots=True)
class RunPlace:
    """Where a run is: absolute folders that every node sees."""

    project: Path
    """jobs start in it"""
    run: Path
    name: str

    @property
    def jobs(self) -> Path:
        """Scripts and logs of the run's jobs."""
        return self.run / "jobs"


def script(profile: ClusterProfile, job: Job, place: RunPlace) -> str:
    """The batch script of a job. Raises InputError for a folder whose name cannot stand in a script."""
    for folder in (place.project, place.run):
        if not _PATH.fullmatch(str(folder)):
            raise InputError(f"`{folder}` cannot stand in a batch script: a folder of a job has letters, digits and `_./@+:-` only")
    resources: StageResources = getattr(profile, job.stage)
    cpus, memory, gpus = _share(profile, resources, job.stage)
    step = [f"--nodes={job.nodes}", f"--ntasks={job.nodes}", "--ntasks-per-node=1", f"--cpus-per-task={cpus}"]
    step += [f"--wait={WAIT_S}"] if job.stage == "train" else []
    pyxis, apptainer = _container(profile, place, gpus)
    text = _templates.get_template("train.sbatch.j2" if job.stage == "train" else "work.sbatch.j2").render(
        what=f"run {place.name}, {job.name}: {profile.name}",
        directives=_directives(profile, resources, job, place, (cpus, memory, gpus)),
        exports=_exports(profile),
        modules=profile.modules,
        node=_node_setup(profile),
        step=step + pyxis,
        here=["srun", "--nodes=1", "--ntasks=1", "--overlap", *pyxis] if pyxis else [],
        inside=apptainer,
        command=job.command,
        partitions=job.partitions,
        most_restarts=MOST_RESTARTS,
        port=profile.rendezvous_port,
        signal_s=profile.signal_s,
        restart=["python", "-m", "speechkd.stages.restart", str(place.run)],
        max_restarts=profile.max_restarts,
        requeue_code=EXIT_REQUEUE,
    )
    return text


def _directives(
    profile: ClusterProfile, resources: StageResources, job: Job, place: RunPlace, share: tuple[int, str | None, int]
) -> list[tuple[str, str]]:
    cpus, memory, gpus = share
    log = "%A_%a" if job.tasks else "%j"
    wanted: list[tuple[str, str | None]] = [
        ("job-name", f"{place.name}-{job.name}"),
        ("chdir", str(place.project)),
        ("output", f"{place.jobs}/{job.name}-{log}.log"),
        ("open-mode", "append"),
        ("requeue", ""),
        ("kill-on-invalid-dep", "yes"),
        ("partition", resources.partition or profile.partition),
        ("account", profile.account),
        ("qos", profile.qos),
        ("constraint", profile.constraint),
        ("reservation", profile.reservation),
        ("nodes", str(job.nodes)),
        ("ntasks-per-node", "1"),
        ("cpus-per-task", str(cpus)),
        ("gres", f"gpu:{gpus}" if gpus else None),
        ("mem", memory),
        ("time", resources.time or profile.time),
        ("array", job.array or None),
        ("signal", f"B:USR1@{profile.signal_s}"),
        *profile.directives.items(),
    ]
    return [(name, value) for name, value in wanted if value is not None]


def _share(profile: ClusterProfile, resources: StageResources, stage: Stage) -> tuple[int, str | None, int]:
    """(CPUs, memory, GPUs) of a stage's task: a node's share that goes with its GPUs, where the profile does not say."""
    whole = stage == "train"
    gpus = profile.gpus_per_node if whole and resources.gpus is None else min(resources.gpus or 0, profile.gpus_per_node)
    if resources.cpus is not None:
        cpus = resources.cpus
    elif whole:
        cpus = profile.cpus_per_node
    else:
        cpus = profile.cpus_per_node * gpus // profile.gpus_per_node if gpus else min(SMALL_TASK_CPUS, profile.cpus_per_node)
    memory = resources.memory or profile.memory
    if not whole and resources.memory is None and memory is not None:
        mebibytes = float(memory.rstrip("KMGT")) * _MEBIBYTES.get(memory[-1], 1)
        memory = f"{max(1, int(mebibytes * min(1.0, cpus / profile.cpus_per_node)))}M"
    return max(1, cpus), memory, gpus


def _exports(profile: ClusterProfile) -> list[tuple[str, str]]:
    network = {name: profile.socket_ifname for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if profile.socket_ifname}
    return list({"SPEECHKD_SCRATCH": profile.scratch, **network, **profile.nccl, **profile.env}.items())


def _node_setup(profile: ClusterProfile) -> str:
    """Shell text that a node runs before its command, which it gets as arguments. USR1 waits until the ranks have a handler."""
    lines = ["trap : USR1"]
    if profile.env_file:
        lines.append(f"set -a; . {shlex.quote(profile.env_file)} || exit; set +a")
    if profile.venv:
        lines.append(f'export VIRTUAL_ENV={_absolute(profile.venv)} && PATH="$VIRTUAL_ENV/bin:$PATH"')
    return "\n".join([*lines, 'trap "" USR1', 'exec "$@"'])


def _absolute(path: str) -> str:
    return shlex.quote(path) if path.startswith("/") else f'"$PWD"/{shlex.quote(path)}'


def _container(profile: ClusterProfile, place: RunPlace, gpus: int) -> tuple[list[str], list[str]]:
    """(options of srun, words before the command) that put a command into the profile's container."""
    if profile.container is None:
        return [], []
    shared = [profile.shared] if profile.shared.startswith("/") else []
    mounts: list[str] = []
    for folder in [*shared, str(place.project), str(place.run), profile.scratch]:
        if not any(Path(folder).is_relative_to(mounted) for mounted in mounts):
            mounts.append(folder)
    pairs = [f"{path}:{path}" for path in mounts] + [mount if ":" in mount else f"{mount}:{mount}" for mount in profile.container.mounts]
    if profile.env_file and not any(Path(profile.env_file).is_relative_to(mounted) for mounted in mounts):
        pairs.append(f"{profile.env_file}:{profile.env_file}:ro")
    if profile.container.runtime == "pyxis":
        return [
            f"--container-image={profile.container.image}",
            f"--container-mounts={','.join(pairs)}",
            f"--container-workdir={place.project}",
        ], []
    words = ["apptainer", "exec", *(["--nv"] if gpus else []), *(word for pair in pairs for word in ("--bind", pair))]
    return [], [*words, "--pwd", str(place.project), profile.container.image]


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3,7` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
