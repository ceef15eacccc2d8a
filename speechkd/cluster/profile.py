"""Site profile: what a SLURM job needs to know about one cluster, read from `launch/clusters/<name>.yaml` or any path."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from speechkd.core.config import NAME_PATTERN, Config, build, read_yaml
from speechkd.core.errors import InputError, unknown_name

CLUSTERS = Path("launch/clusters")
"""Where profiles stand in a project: `--cluster NAME` looks here"""
SlurmName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,:=+-]*$", max_length=200)]
"""A partition, account, qos or constraint: nothing that could end a directive or a word"""
CleanPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./@%+:-]+$", max_length=1000)]
"""A path without spaces, quotes or expansions: it stands in scripts"""
ImageName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./@+:#-]+$", max_length=1000)]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./+-]*$", max_length=200)]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)]
Duration = Annotated[str, StringConstraints(pattern=r"^(\d+-)?\d{1,3}(:\d{2}){0,2}$")]
"""As SLURM writes time limits: `90` minutes, `12:00:00`, `2-00:00:00`"""


class ContainerConfig(Config):
    """A container that the job's commands run in."""

    runtime: Literal["pyxis", "apptainer"]
    image: ImageName
    """A .sqsh or .sif file, or an image's address (Pyxis writes `registry#repository:tag`)"""
    mounts: list[CleanPath] = []
    """`host:container` or one path for both; the shared folder and the scratch are always mounted"""


class StageResources(Config):
    """What one stage asks for where it differs from the profile's own keys."""

    partition: SlurmName | None = None
    nodes: int = Field(1, ge=1)
    gpus: int | None = Field(None, ge=0)
    """per node"""
    cpus: int | None = Field(None, ge=1)
    """per task"""
    memory: Annotated[str, StringConstraints(pattern=r"^\d+[KMGT]?$")] | None = None
    """per node, as SLURM writes it: `64G`"""
    time: Duration | None = None
    max_array: int = Field(64, ge=1)
    """most tasks of an array, each with its share of the shards"""


class ClusterProfile(Config):
    """One cluster, as its users write it down once."""

    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    description: str = ""
    partition: SlurmName | None = None
    account: SlurmName | None = None
    qos: SlurmName | None = None
    constraint: SlurmName | None = None
    reservation: SlurmName | None = None
    directives: dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z-]*$")], SlurmName | Literal[""]] = {}
    """further options of sbatch for every job, e.g. `mail-type: FAIL`, or `exclusive: ""`"""
    gpus_per_node: int = Field(8, ge=0)
    """0: a cluster without GPUs; ranks run on CPUs with gloo"""
    ranks_per_node: int | None = Field(None, ge=1)
    """ranks that training starts on a node; unset: one for each GPU, or one on a node without GPUs"""
    cpus_per_node: int = Field(64, ge=1)
    memory: Annotated[str, StringConstraints(pattern=r"^\d+[KMGT]?$")] | None = None
    """per node; unset: the partition's default"""
    gpu_memory_gib: float | None = Field(None, gt=0)
    """of one GPU; `speechkd plan --cluster` compares with it"""
    gpu_tflops: float | None = Field(None, gt=0)
    """dense bf16 peak of one GPU, in TFLOP/s"""
    mfu: float = Field(0.3, gt=0, le=1)
    """share of the peak that a plan counts on where nothing was measured"""
    link_gbps: float = Field(400, gt=0)
    """of one GPU to other nodes, in Gbit/s; `speechkd plan --cluster` compares gathers with it"""
    node_link_gbps: float = Field(2960, gt=0)
    """of one GPU to the others of its node (NVLink), in Gbit/s"""
    time: Duration = "12:00:00"
    signal_s: int = Field(180, ge=1, le=3600)
    """seconds before the time limit at which SLURM signals a job, so that it saves and is requeued"""
    shared: CleanPath = "."
    """folder that every node sees, in which the project and its runs are; jobs start where they were submitted"""
    scratch: CleanPath = "/tmp"
    """folder of each node's own disk, for caches"""
    env_file: CleanPath | None = None
    """shell file of `NAME=value` lines with what must not stand in a script (passwords): read on each node, never copied"""
    env: dict[EnvName, str] = {}
    modules: list[ModuleName] = []
    """for `module load`"""
    venv: CleanPath | None = ".venv"
    """virtual environment to use; unset in a container that has speechkd installed"""
    container: ContainerConfig | None = None
    socket_ifname: SlurmName | None = None
    """network interface of gloo and of NCCL's bootstrap, e.g. `bond0`; unset: they choose"""
    nccl: dict[Annotated[str, StringConstraints(pattern=r"^NCCL_[A-Z0-9_]+$")], str] = {}
    """e.g. `NCCL_IB_HCA: mlx5`"""
    rendezvous_port: int = Field(29500, ge=1024, le=65000)
    max_restarts: int = Field(3, ge=1)
    """restarts without a new step after which a training job is not requeued again"""
    shard: StageResources = StageResources(gpus=0)
    teach: StageResources = StageResources(gpus=1)
    train: StageResources = StageResources()
    eval: StageResources = StageResources(gpus=1)

    @property
    def ranks(self) -> int:
        """Ranks that training starts on each node."""
        return self.ranks_per_node or max(1, self.gpus_per_node)


def read_profile(given: str) -> ClusterProfile:
    """The profile of that name in `launch/clusters`, or in the file at that path. Raises InputError with the nearest name."""
    path = Path(given)
    if path.suffix not in (".yaml", ".yml"):
        path = CLUSTERS / f"{given}.yaml"
        if "/" in given or not path.is_file():
            known = [found.stem for found in CLUSTERS.glob("*.yaml")] if CLUSTERS.is_dir() else []
            where = f"profiles stand in {CLUSTERS.resolve()}; a path that ends in .yaml works too"
            raise InputError(unknown_name("cluster", given, known, where))
    if not path.is_file():
        raise InputError(f"no cluster profile `{path}`")
    return build(ClusterProfile, read_yaml(path), str(path))
