"""`speechkd submit`: writes the batch scripts of what is missing into the run folder, and submits them as a graph."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

from speechkd.cluster.profile import ClusterProfile
from speechkd.cluster.scheduler import cancel, submit_script
from speechkd.cluster.slurm import Job, RunPlace, script
from speechkd.core.config import dump_yaml
from speechkd.core.errors import InputError
from speechkd.core.files import write_text
from speechkd.core.locks import exclusive
from speechkd.core.log import say
from speechkd.engine.ds_config import read_ds_config
from speechkd.recipe import Recipe
from speechkd.stages.assembly.preflight import check_method
from speechkd.stages.job_graph import JobGraph, job_graph
from speechkd.stages.job_records import JOBS, JobRecords, SubmittedJob, alive, described, read_records, write_records
from speechkd.stages.run_folder import RECIPE, same_recipe

SUBMIT_LOCK = ".submit.lock"


def submit(recipe: Recipe, profile: ClusterProfile, nodes: int | None, dry_run: bool, as_json: bool) -> int:
    """Submit shard, teach, train and eval jobs for what is not done yet; a `dry_run` prints their scripts and writes nothing.

    Raises InputError for whatever a job would refuse later, for a run whose jobs are still in the queue, and where SLURM refuses.
    """
    nodes = nodes or profile.train.nodes
    recipe.plan.per_rank(nodes * profile.ranks)
    read_ds_config(Path(recipe.deepspeed))
    check_method(recipe)
    place = _place(recipe, profile)
    if (place.run / RECIPE).is_file():
        same_recipe(place.run, recipe)
    if dry_run:
        graph = job_graph(recipe, profile, nodes, place.jobs / RECIPE)
        _show(graph, {job.name: script(profile, job, place) for job in graph.jobs}, place, as_json)
        return 0
    with exclusive(place.jobs / SUBMIT_LOCK, 0.0, f"another `speechkd submit` is at work on `{place.run}`"):
        earlier = read_records(place.run)
        if earlier is not None and (found := alive(earlier)):
            names = described(found, earlier)
            raise InputError(f"jobs of `{place.run}` are in the queue: {names}; wait, or run `speechkd cancel {recipe.run_dir}`")
        graph = job_graph(recipe, profile, nodes, place.jobs / RECIPE)
        texts = {job.name: script(profile, job, place) for job in graph.jobs}
        if graph.jobs:
            write_text(place.jobs / RECIPE, dump_yaml(recipe.model_dump(mode="json")))
        for name, text in texts.items():
            write_text(_script_path(place, name), text)
        records = JobRecords(
            profile=profile.name, nodes=nodes, ranks=profile.ranks, parts=graph.parts, jobs=earlier.jobs if earlier is not None else []
        )
        submitted = _submit_all(graph, records, place)
    if as_json:
        print(json.dumps({"run": str(place.run), "jobs": [job.model_dump(mode="json") for job in submitted]}, indent=1))
        return 0
    for job in submitted:
        print(f"{job.name:<20} job {job.job}{f', array {job.array}' if job.array else ''}")
    if not submitted:
        say(f"submit: nothing to do, `{recipe.run_dir}` is complete")
    else:
        say(f"submit: scripts and logs are in `{recipe.run_dir / JOBS}`; watch with `speechkd status {recipe.run_dir} --watch`")
    return 0


def _place(recipe: Recipe, profile: ClusterProfile) -> RunPlace:
    place = RunPlace(Path.cwd(), recipe.run_dir.absolute(), recipe.name)
    if profile.shared.startswith("/"):
        for folder in (place.project, place.run):
            if not folder.is_relative_to(profile.shared):
                raise InputError(f"`{folder}` is not in `{profile.shared}`, which the nodes of cluster `{profile.name}` share: work there")
    return place


def _submit_all(graph: JobGraph, records: JobRecords, place: RunPlace) -> list[SubmittedJob]:
    """Submit the jobs in order, each after those before it; records each as soon as SLURM has it. All or none stay in the queue."""
    submitted: dict[str, SubmittedJob] = {}
    try:
        for job in graph.jobs:
            after = [submitted[other.name].job for other in graph.after(job)]
            path = _script_path(place, job.name)
            number = submit_script(path, after)
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            command = ["sbatch", *([f"--dependency=afterok:{':'.join(map(str, after))}"] if after else []), str(path)]
            submitted[job.name] = SubmittedJob(stage=job.stage, name=job.name, job=number, array=job.array, command=command, at=now)
            write_records(place.run, records.model_copy(update={"jobs": [*records.jobs, *submitted.values()]}))
    except BaseException:
        if submitted:
            cancel([job.job for job in submitted.values()])
        raise
    return list(submitted.values())


def _script_path(place: RunPlace, name: str) -> Path:
    return place.jobs / f"{name}.sbatch"


def _show(graph: JobGraph, texts: dict[str, str], place: RunPlace, as_json: bool) -> None:
    if as_json:
        jobs = [{"name": job.name, "stage": job.stage, "array": job.array, "after": _names(graph, job)} for job in graph.jobs]
        print(json.dumps({"run": str(place.run), "jobs": [{**job, "script": texts[str(job["name"])]} for job in jobs]}, indent=1))
        return
    for job in graph.jobs:
        after = _names(graph, job)
        print(f"── {_script_path(place, job.name)}{' (after ' + ', '.join(after) + ')' if after else ''}\n{texts[job.name]}")
    if not graph.jobs:
        say("submit: nothing to do, the run is complete")


def _names(graph: JobGraph, job: Job) -> list[str]:
    return [other.name for other in graph.after(job)]
