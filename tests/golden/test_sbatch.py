"""The batch scripts of each profile in launch/clusters, as they were last looked at.

After a change that is meant: `UPDATE_GOLDEN=1 python -m pytest tests/golden`, then read the difference.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from speechkd.cluster.profile import read_profile
from speechkd.cluster.slurm import Job, RunPlace, script
from tests.consistency.house import ROOT

GOLDEN = Path(__file__).parent / "sbatch"
PROFILES = sorted(path.stem for path in (ROOT / "launch/clusters").glob("*.yaml"))


def jobs(nodes: int, ranks: int, recipe: str) -> list[Job]:
    """The four stages of a run, as `speechkd submit` asks for them."""
    words = ("python", "-m", "speechkd")
    size = ("--ranks", str(ranks), "--nodes", str(nodes))
    return [
        Job("shard", "shard-mycorpus", (*words, "shard", "my cards/mycorpus.yaml", "--out", "data"), partitions=4, tasks=(0, 1, 2, 3)),
        Job("teach", "teach", (*words, "teach", recipe), partitions=64, tasks=(0, 1, 2, 7, 63)),
        Job("train", "train", ("bash", "launch/node.sh", recipe, *size), nodes=nodes),
        Job("eval", "eval", (*words, "eval", recipe, "--whole")),
    ]


@pytest.mark.parametrize("name", PROFILES)
def test_the_scripts_of_a_profile_are_the_golden_ones(name: str) -> None:
    profile = read_profile(str(ROOT / f"launch/clusters/{name}.yaml"))
    project = Path(profile.shared if profile.shared != "." else "/shared", "project")
    place = RunPlace(project, project / "runs/mine", "mine")
    text = "\n".join(
        f"── {job.name}\n{script(profile, job, place)}" for job in jobs(profile.train.nodes, profile.ranks, f"{place.jobs}/recipe.yaml")
    )
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def test_the_golden_scripts_are_shell_and_nothing_else_is_golden() -> None:
    assert sorted(path.stem for path in GOLDEN.iterdir()) == PROFILES
    for name in PROFILES:
        for text in (GOLDEN / f"{name}.txt").read_text(encoding="utf-8").split("── ")[1:]:
            done = subprocess.run(["bash", "-n"], input=text.partition("\n")[2], capture_output=True, text=True, timeout=30)
            assert done.returncode == 0, (name, done.stderr)
