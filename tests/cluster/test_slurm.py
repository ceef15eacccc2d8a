"""Batch scripts carry values and never run them: 10,000 hostile names, paths and values, read by a real shell."""

from __future__ import annotations

import os
import random
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from speechkd.cluster.profile import ClusterProfile, read_profile
from speechkd.cluster.slurm import Job, RunPlace, script
from speechkd.core.config import build
from speechkd.core.errors import InputError
from tests.consistency.house import ROOT

CANARY = "canary"
PIECES = [
    f"$(touch {CANARY})",
    f"`touch {CANARY}`",
    f"; touch {CANARY} ;",
    f"\ntouch {CANARY}\n",
    f"' touch {CANARY} '",
    f'" ; touch {CANARY} #',
]
PIECES += [
    "\n#SBATCH --wrap=id\n",
    "$PATH",
    "${x:-y}",
    "\\",
    "'",
    '"',
    "\r\n",
    "\t",
    "é",
    "東京",
    "\u2028",
    "*",
    "~",
    "!",
    "&",
    "|",
    "(",
    "<",
    "-x",
    "%j",
]
PIECES += ["a", "B_2", "x-y", "/", ".", " "]
PLACE = RunPlace(Path("/shared/project"), Path("/shared/project/runs/mine"), "mine")


def hostile(count: int, seed: int = 0) -> list[str]:
    """Texts of one to four pieces, most of them an attack."""
    rng = random.Random(seed)
    return ["".join(rng.choices(PIECES, k=rng.randint(1, 4))) for _ in range(count)]


def profile(changes: dict[str, Any] | None = None) -> ClusterProfile:
    return build(ClusterProfile, {"name": "fuzz", "gpus_per_node": 0, "venv": None, **(changes or {})}, "fuzz")


def body(text: str) -> str:
    """What the shell runs, without the directives."""
    return text.partition("set -uo pipefail\n")[2]


CHECKED: list[Callable[[str], object]] = [
    lambda text: script(profile(), Job("eval", "eval", ("true",)), RunPlace(Path("/", text), Path("/runs"), "mine")),
    lambda text: script(profile(), Job("eval", "eval", ("true",)), RunPlace(Path("/project"), Path("/runs", text), "mine")),
    *(
        lambda text, key=key: script(profile({key: text}), Job("train", "train", ("true",)), PLACE)  # type: ignore[misc]
        for key in ("name", "partition", "account", "qos", "scratch", "shared", "env_file", "venv", "socket_ifname", "time", "memory")
    ),
    lambda text: script(profile({"directives": {"comment": text}}), Job("eval", "eval", ("true",)), PLACE),
    lambda text: script(profile({"modules": [text]}), Job("eval", "eval", ("true",)), PLACE),
    lambda text: script(profile({"env": {text: "x"}}), Job("eval", "eval", ("true",)), PLACE),
    lambda text: script(profile({"container": {"runtime": "pyxis", "image": text}}), Job("eval", "eval", ("true",)), PLACE),
    lambda text: script(
        profile({"container": {"runtime": "apptainer", "image": "x.sif", "mounts": [text]}}), Job("eval", "eval", ("true",)), PLACE
    ),
]
"""Places of a name or path: each either refuses a text or is left with one that means nothing to a shell"""


def test_names_and_paths_are_refused_or_harmless() -> None:
    """4,000 texts, each in one of these places."""
    safe = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./@%+:=,#-")
    refused = 0
    for number, text in enumerate(hostile(4000)):
        try:
            CHECKED[number % len(CHECKED)](text)
        except InputError:
            refused += 1
        else:
            assert set(text) <= safe, text
    assert 3000 < refused < 4000


def test_values_reach_their_command_and_never_run(tmp_path: Path) -> None:
    """6,000 values as arguments and variables of real scripts: srun is a stub that compares what it gets, and no canary appears."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    # a stand-in for srun: what the node's command would be, word by word
    (stubs / "srun").write_text('#!/bin/bash\nwhile [ "$1" != node ]; do shift; done\nprintf "%s\\0" "${@:2}" "$VALUE" >> got\n')
    os.chmod(stubs / "srun", 0o755)
    texts = [text for text in hostile(6000, seed=1) if "\0" not in text]
    words, scripts = [], []
    for start in range(0, len(texts), 100):
        group = texts[start : start + 100]
        words.append([*group, group[0]])
        job = Job("eval", "eval", tuple(group))
        scripts.append(body(script(profile({"env": {"VALUE": group[0]}}), job, PLACE)))
    for number, text in enumerate(scripts):
        (tmp_path / f"{number}.sh").write_text(text, encoding="utf-8")
    environment = {"PATH": f"{stubs}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    loop = "for number in $(seq 0 $1); do bash -n $number.sh || exit 9; bash $number.sh || exit; done"
    command = ["bash", "-c", loop, "loop", str(len(scripts) - 1)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert (tmp_path / "got").read_bytes().decode().split("\0")[:-1] == [word for group in words for word in group]
    assert not (tmp_path / CANARY).exists()


def test_a_canary_that_is_not_quoted_is_seen(tmp_path: Path) -> None:
    """The test above can fail."""
    (tmp_path / "bad.sh").write_text(f"echo {PIECES[0]}\n")
    subprocess.run(["bash", "bad.sh"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / CANARY).exists()


def test_the_env_file_is_read_on_the_node_and_not_copied(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("TOKEN='a secret'\n")
    text = script(profile({"env_file": f"{tmp_path}/env"}), Job("eval", "eval", ("sh", "-c", 'echo "$TOKEN"')), PLACE)
    assert "a secret" not in text
    setup = next(line for line in shlex.split(body(text), comments=True) if line.startswith("node="))
    done = subprocess.run(["bash", "-c", setup.removeprefix("node="), "node", "sh", "-c", 'echo "$TOKEN"'], capture_output=True, text=True)
    assert done.stdout == "a secret\n"


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("train", ["--cpus-per-task=96", "--gres=gpu:8", "--mem=1000G", "--signal=B:USR1@300"]),
        ("teach", ["--cpus-per-task=12", "--gres=gpu:1", "--mem=128000M", "--array=1,3-5"]),
        ("shard", ["--cpus-per-task=16", "--partition=cpu"]),
    ],
)
def test_a_stage_takes_its_share_of_a_node(stage: Any, expected: list[str]) -> None:
    job = Job(stage, stage, ("true",), partitions=8, tasks=(1, 3, 4, 5) if stage == "teach" else ())
    lines = script(read_profile(str(ROOT / "launch/clusters/plain.yaml")), job, PLACE).splitlines()
    assert not [option for option in expected if f"#SBATCH {option}" not in lines]
    assert any("gres" in line for line in lines) is (stage != "shard")
