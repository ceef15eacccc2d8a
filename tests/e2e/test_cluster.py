"""A run on a real SLURM of two nodes: submitted once, driven off, cut short by its time limit, robbed of a node, and finished.

The two nodes are this machine; slurmctld, both slurmd, their signals, limits and losses are SLURM's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from speechkd.core.errors import EXIT_INPUT
from speechkd.tracking.journal import JOURNAL, LATEST, read_journal
from tests.e2e.conftest import ROOT, losses, speechkd, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
NODES, STEPS = 2, 60
LIMIT_MIN, SIGNAL_S = 3, 60
"""Time limit of the training job, and how long before it SLURM signals; SLURM looks twice a minute, so up to 30 s earlier than that"""
CANARY = "canary-0451-token"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a SLURM that runs, which this process and its children use. A machine without SLURM fails here."""
    folder = tmp_path_factory.mktemp("slurm")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1] // 10 * 10
    here = os.environ | {"DEVCLUSTER": str(folder), "DEVCLUSTER_PORT": str(port), "DEVCLUSTER_NODES": str(NODES)}
    for _ in range(2):  # the second call finds everything running
        done = subprocess.run([ROOT / "launch/devcluster/start.sh"], env=here, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**here, "SLURM_CONF": str(folder / "slurm.conf"), "WANDB_API_KEY": CANARY}.items():
            patch.setenv(name, value)
        try:
            yield folder
        finally:
            subprocess.run([ROOT / "launch/devcluster/stop.sh"], check=True, timeout=60)
    assert not [pid for file in folder.glob("*.pid") if psutil.pid_exists(pid := int(file.read_text() or 0)) and pid]


@pytest.fixture(scope="module")
def words(workshop: Path, cluster: Path) -> tuple[object, ...]:
    """How to submit the workshop's recipe, on data of its own, with this very Python on the nodes."""
    profile = yaml.safe_load((ROOT / "launch/clusters/devcluster.yaml").read_text(encoding="utf-8"))
    secrets = cluster / "env"
    secrets.write_text(f"MLFLOW_TRACKING_PASSWORD={CANARY}\nMEETS=everyone\n", encoding="utf-8")
    profile |= {"venv": sys.prefix, "env": {"PYTHONPATH": str(ROOT)}, "env_file": str(secrets)}
    profile |= {"shard": {"max_array": NODES}, "teach": {"max_array": NODES}, "signal_s": SIGNAL_S}
    profile |= {"train": {"nodes": NODES, "time": str(LIMIT_MIN)}}
    (cluster / "profile.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    sets = [f"data.root={cluster / 'data'}", f"train.regimes.kd.0.steps={STEPS}", "train.checkpoint_every=8"]
    sets += [f"tracking.uri=sqlite:///{cluster / 'mlflow.db'}", "tracking.experiment=cluster"]
    return (workshop / "recipe.yaml", "--cluster", cluster / "profile.yaml", *(word for text in sets for word in ("--set", text)))


def slurm(*command: str, timeout: float = 60) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown(job: int | str, field: str) -> str:
    """A field of `scontrol show job`."""
    found = re.search(rf"\b{field}=(\S*)", slurm("scontrol", "show", "job", "--oneliner", str(job)))
    assert found, field
    return found.group(1)


def restarts(job: int | str) -> int:
    return int(shown(job, "Restarts"))


def requeued(job: int | str, since: int, seconds: float = 150) -> None:
    """Wait until SLURM has queued a job again since it had restarted so often, then let it start at once instead of after its pause."""
    wait_for(lambda: restarts(job) > since, seconds)
    time.sleep(3)  # a node refuses a start in the second in which it revoked the job's credential
    end = time.monotonic() + 60
    while shown(job, "JobState") != "RUNNING":
        assert time.monotonic() < end, slurm("scontrol", "show", "job", str(job))
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True, timeout=60)
        time.sleep(0.3)


def processes(**environment: str) -> list[psutil.Process]:
    """Those on this machine that were started with these variables."""
    found = []
    for process in psutil.process_iter():
        try:
            if environment.items() <= process.environ().items():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@contextlib.contextmanager
def held(found: list[psutil.Process]) -> Iterator[None]:
    """Stand still during the block, so that what happens in it meets work in progress, on a fast machine and a slow one."""
    assert found
    for process in found:
        process.suspend()
    try:
        yield
    finally:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def lose_node(node: str, job: int) -> None:
    """SIGKILL a node's daemon and every process of the job on that node.

    Those that watch over the job go first: a slurmstepd that outlives its script by a moment still tells slurmctld how the script ended
    (`_job_complete: JobId=3 WTERMSIG 9`), and a job that has failed is not queued again. A node that is lost says nothing.
    """
    doomed = processes(SLURMD_NODENAME=node, SLURM_JOB_ID=str(job))
    watchers = {parent.pid for process in doomed for parent in process.parents() if parent.name().startswith("slurmstepd")}
    assert doomed and watchers, "the job runs there"
    daemon = int((Path(os.environ["DEVCLUSTER"]) / f"slurmd.{node}.pid").read_text())
    for pid in [daemon, *watchers, *(process.pid for process in doomed)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def goes_on(run: Path, steps: int = 3) -> Callable[[], bool]:
    """Whether a run has come so many steps further than it is now."""
    now = max(losses(run), default=0)
    return lambda: max(losses(run), default=0) >= now + steps


def state_of(run: Path) -> dict[str, dict[str, object]]:
    done = speechkd("status", run, "--json")
    assert done.returncode == 0, done.stderr
    state: dict[str, dict[str, object]] = json.loads(done.stdout)
    return state


def stage_states(run: Path) -> dict[str, object]:
    stages: list[dict[str, object]] = state_of(run)["stages"]  # type: ignore[assignment]
    return {str(stage["stage"]): stage["state"] for stage in stages}


def test_a_submitted_run_survives_preemption_its_time_limit_and_a_lost_node(
    workshop: Path, cluster: Path, words: tuple[object, ...]
) -> None:
    """It ends with the curve of an uninterrupted run, no point twice, in one MLflow run that is FINISHED."""
    run = workshop / "runs" / "submitted"
    done = speechkd("submit", *words, "--set", "name=submitted", "--json")
    assert done.returncode == 0, done.stderr
    jobs = {job["stage"]: job["job"] for job in json.loads(done.stdout)["jobs"]}
    assert list(jobs) == ["shard", "teach", "train", "eval"]
    train = jobs["train"]
    again = speechkd("submit", *words, "--set", "name=submitted")
    assert again.returncode == EXIT_INPUT and f"train {train} (" in again.stderr and again.stderr.count("\n") == 1

    # Shards 0 and 2 are the first task's. It is signalled as it would be near its limit, between the two.
    def written(shard: int) -> list[Path]:
        return list((cluster / "data/tiny/v1/columns").glob(f"*/receipts/{shard:06d}.json"))

    teach, first = jobs["teach"], f"{jobs['teach']}_0"
    step = {"SLURM_ARRAY_JOB_ID": str(teach), "SLURM_ARRAY_TASK_ID": "0", "SLURM_STEP_ID": "0"}
    wait_for(lambda: bool(processes(**step)), 240)
    working = processes(**step)  # looked for now: a shard is written sooner than all processes are looked through
    wait_for(lambda: bool(written(0)), 240)
    with held(working):
        kept = written(0)[0].stat().st_mtime_ns
        assert not written(2)
        slurm("scancel", "--signal=USR1", "--batch", first)
        time.sleep(3)
    requeued(first, 0)

    wait_for(goes_on(run, 2), 240)
    so_far = restarts(train)
    size = (f"--nodes={NODES}", "--ntasks-per-node=1", "--cpus-per-task=2")
    high = int(slurm("sbatch", "--parsable", "--partition=high", *size, "--output=/dev/null", "--wrap=sleep 1"))
    assert written(2) and written(0)[0].stat().st_mtime_ns == kept, "the task went on from where it was"
    requeued(train, so_far)
    assert shown(high, "JobState") == "COMPLETED"
    assert stage_states(run) == {"shard": "done", "teach": "done", "train": "running", "eval": "waiting"}

    # The limit: nobody signals the job but slurmctld, whose log says so while it is asked to.
    so_far, further = restarts(train), goes_on(run)
    slurm("scontrol", "setdebug", "debug")

    def logged(text: str) -> bool:
        return text in (cluster / "slurmctld.log").read_text(encoding="utf-8")

    told = f"warning signal {signal.SIGUSR1.value} to JobId={train}"
    wait_for(lambda: further() or logged(told), 240)
    if not logged(told):
        with held(processes(SLURM_JOB_ID=str(train), RANK="1")):
            wait_for(lambda: logged(told), 60 * LIMIT_MIN)
    slurm("scontrol", "setdebug", "info")
    assert len(losses(run)) < STEPS, "it came in the middle"
    requeued(train, so_far)

    # The node of the batch script and of rank 0.
    wait_for(goes_on(run), 240)
    so_far, node = restarts(train), shown(train, "BatchHost")
    lose_node(node, train)
    wait_for(lambda: logged(f"requeue job JobId={train} due to failure of node {node}"), 90)
    subprocess.run([ROOT / "launch/devcluster/start.sh"], check=True, capture_output=True, timeout=60)
    requeued(train, so_far)

    wait_for(lambda: shown(jobs["eval"], "JobState") not in ("PENDING", "RUNNING", "COMPLETING"), 360)
    logs = "".join(path.read_text(encoding="utf-8", errors="replace")[-3000:] for path in (run / "jobs").glob("*.log"))
    assert shown(jobs["eval"], "JobState") == "COMPLETED", logs
    assert stage_states(run) == dict.fromkeys(("shard", "teach", "train", "eval"), "done")
    stages: list[dict[str, object]] = state_of(run)["stages"]  # type: ignore[assignment]
    assert {stage["stage"]: stage["jobs"] for stage in stages} == {stage: [str(job)] for stage, job in jobs.items()}

    reference = workshop / "runs" / "unsubmitted"
    plain = [word for word in words if word not in ("--cluster", cluster / "profile.yaml")]
    done = speechkd("train", *plain, "--set", "name=unsubmitted", "--set", "tracking.uri=null", "--ranks", NODES)
    assert done.returncode == 0, done.stderr[-2000:]
    curve, expected = losses(run), losses(reference)
    assert sorted(curve) == sorted(expected) == list(range(1, STEPS + 1))
    assert max(abs(curve[step] / expected[step] - 1) for step in expected) <= 1e-4

    points = Counter(
        (name, record["step"])
        for record in read_journal(run / JOURNAL)
        if record["kind"] == "metric" and not record.get(LATEST)
        for name in record["values"]
    )
    assert max(points.values()) == 1
    with sqlite3.connect(cluster / "mlflow.db") as store:
        [(status,)] = store.execute("select status from runs").fetchall()
        assert status == "FINISHED"
        stored = dict(store.execute("select step, value from metrics where key = 'train/loss'").fetchall())
        assert stored == pytest.approx(curve)
        assert store.execute("select count(*) from metrics where key = 'train/loss'").fetchone() == (STEPS,)
    assert not [path for path in (run / "jobs").iterdir() if CANARY in path.read_text(encoding="utf-8", errors="replace")]

    again = speechkd("submit", *words, "--set", "name=submitted")
    assert again.returncode == 0 and not again.stdout and "nothing to do" in again.stderr


def test_doctor_looks_at_every_node_of_an_allocation(cluster: Path, words: tuple[object, ...]) -> None:
    """Both nodes join, see one folder, and are named; a node where something is missing says so itself."""
    profile = cluster / "profile.yaml"
    srun = ("srun", f"--nodes={NODES}", "--ntasks-per-node=1")
    doctor = (sys.executable, "-m", "speechkd", "doctor", "--json", "--run-folder", str(cluster), "--cluster")
    report = json.loads(slurm(*srun, *doctor, str(profile), timeout=150))
    found = {finding["check"]: finding["text"] for finding in report["findings"]}
    assert not report["counts"]["fail"] and found["nodes"].startswith("2 with 2 processes: n1, n2;")
    assert "2 ranks on 2 nodes" in found["all-reduce"] and found["clocks"].startswith("of 2 nodes")

    hidden = '[ "$SLURMD_NODENAME" = n1 ] || PATH=/nowhere; exec "$@"'
    text = slurm(*srun, "bash", "-c", hidden, "node", *doctor[:4], *doctor[5:], str(profile), timeout=150)
    assert re.search(r"^warn  sbatch +\[n2\] not found", text, re.M) and "n1]" not in text, text


def test_cancel_takes_every_job_of_a_run_out_of_the_queue(workshop: Path, cluster: Path, words: tuple[object, ...]) -> None:
    """None comes back by itself; where nothing is in the queue, it says so; and the run can be submitted again."""
    run = workshop / "runs" / "cancelled"
    submitted = speechkd("submit", *words, "--set", "name=cancelled", "--json")
    assert submitted.returncode == 0, submitted.stderr
    jobs = [job["job"] for job in json.loads(submitted.stdout)["jobs"]]
    done = speechkd("cancel", run)
    assert done.returncode == 0 and all(str(job) in done.stdout for job in jobs), done.stdout + done.stderr
    wait_for(lambda: not slurm("squeue", "--noheader", "--format=%i").split(), 60)
    again = speechkd("cancel", run)
    assert again.returncode == 0 and "no job of" in again.stdout
    assert stage_states(run)["train"] == "failed" and "CANCELLED" in str(state_of(run)["failure"])
    done = speechkd("submit", *words, "--set", "name=cancelled")
    assert done.returncode == 0 and speechkd("cancel", run).returncode == 0
