"""What is still to do of a recipe, as SLURM jobs: an array for each corpus, an array for the teachers, training, evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechkd.cluster.profile import ClusterProfile
from speechkd.cluster.slurm import Job
from speechkd.data.cards import load_card
from speechkd.data.column_writer import shards_to_do as column_to_do
from speechkd.engine.checkpoint import committed, latest, read_trainer, step_of
from speechkd.recipe import Recipe
from speechkd.stages.inputs.columns import column_spec
from speechkd.stages.inputs.corpora import open_corpora, version_folder
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.job_records import ShardedPart
from speechkd.stages.run import is_concluded
from speechkd.stages.run_folder import CHECKPOINTS, last_step
from speechkd.stages.shard import shards_to_do

SPEECHKD = ("python", "-m", "speechkd")


@dataclass(frozen=True, slots=True)
class JobGraph:
    """The jobs to submit, in order, and everything that is made shard by shard, done or not."""

    jobs: list[Job]
    parts: list[ShardedPart]

    def after(self, job: Job) -> list[Job]:
        """The jobs that a job waits for: those of the nearest stage before it that has any."""
        before = [other for other in self.jobs[: self.jobs.index(job)] if other.stage != job.stage]
        return [other for other in before if other.stage == before[-1].stage]


def job_graph(recipe: Recipe, profile: ClusterProfile, nodes: int, resolved: Path) -> JobGraph:
    """What is missing: shards, columns, training, evaluation; writes nothing.

    `resolved`: the file in which the jobs will find the recipe. Raises InputError for cards, corpora and teachers that cannot be used.
    """
    jobs, parts = _shard_jobs(recipe, profile)
    sharded = not jobs
    columns, missing = _columns(recipe, parts, sharded)
    if missing:
        partitions = min(profile.teach.max_array, max(part.shards for part in columns))
        tasks = tuple(sorted({shard % partitions for shard in missing}))
        jobs.append(Job("teach", "teach", (*SPEECHKD, "teach", str(resolved)), partitions=partitions, tasks=tasks))
    if not _is_trained(recipe):
        size = ("--ranks", str(profile.ranks), "--nodes", str(nodes))
        jobs.append(Job("train", "train", ("bash", "launch/node.sh", str(resolved), *size), nodes=nodes))
    if jobs or not is_concluded(recipe):
        jobs.append(Job("eval", "eval", (*SPEECHKD, "eval", str(resolved), "--whole")))
    return JobGraph(jobs, parts + columns)


def _shard_jobs(recipe: Recipe, profile: ClusterProfile) -> tuple[list[Job], list[ShardedPart]]:
    jobs, parts = [], []
    for corpus in recipe.data.corpora:
        card = load_card(Path(corpus.card))
        total, missing = shards_to_do(Path(corpus.card), recipe.data.root)
        parts.append(ShardedPart(stage="shard", name=card.name, root=str(version_folder(recipe.data.root, card)), shards=total))
        if missing:
            partitions = min(profile.shard.max_array, total)
            tasks = tuple(sorted({shard % partitions for shard in missing}))
            command = (*SPEECHKD, "shard", corpus.card, "--out", recipe.data.root)
            jobs.append(Job("shard", f"shard-{card.name}", command, partitions=partitions, tasks=tasks))
    return jobs, parts


def _columns(recipe: Recipe, corpora: Sequence[ShardedPart], sharded: bool) -> tuple[list[ShardedPart], set[int]]:
    """The columns of the recipe's regime, and the shards that any of them lacks: all, where the corpora are still to be sharded."""
    prompt = open_prompt(recipe.prompt, recipe.student.llm)
    opened = open_corpora(recipe.data) if sharded else []
    parts, missing = [], set()
    for role in recipe.train.roles:
        spec = column_spec(role, recipe.teachers[role], recipe.prompt, prompt)
        for number, part in enumerate(corpora):
            if recipe.data.corpora[number].weight(role):
                parts.append(ShardedPart(stage="teach", name=spec.name, root=f"{part.root}/columns/{spec.name}", shards=part.shards))
                missing |= set(column_to_do(opened[number].shards, spec) if sharded else range(part.shards))
    return parts, missing


def _is_trained(recipe: Recipe) -> bool:
    end = last_step(recipe.run_dir, recipe.train.steps)
    if not any(step_of(folder) >= end for folder in committed(recipe.run_dir / CHECKPOINTS)):
        return False  # whatever is there: no need to read it
    newest = latest(recipe.run_dir / CHECKPOINTS)
    return newest is not None and bool(read_trainer(newest)["step"] >= end)
