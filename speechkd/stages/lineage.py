"""Journals where a student comes from: the datasets it read, the checkpoints of its run, and its exports."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from speechkd.core.errors import DataError
from speechkd.core.files import digest, read_json
from speechkd.engine.checkpoint import COMMIT, NAME, WEIGHTS
from speechkd.models.exported import read_manifest
from speechkd.stages.inputs.corpora import Corpus
from speechkd.tracking.journal import JOURNAL, Journal


def record_datasets(journal: Journal, corpora: Iterable[Corpus]) -> None:
    """Journal the datasets that training reads: version, licence, place, and samples of each split."""
    for corpus in {corpus.card.name: corpus for corpus in corpora}.values():
        card, shards = corpus.card, corpus.shards
        facts = {"version": card.version, "licence": card.licence, "homepage": card.homepage, "shards": str(shards.root)}
        journal.dataset(card.name, shards.digest, {**facts, **shards.manifest["totals"], "splits": shards.splits()})


def record_checkpoints(journal: Journal, checkpoints: Path) -> None:
    """Journal what changed in the folder of checkpoints since the last call: committed ones, and those that were removed."""
    relative = {f"{checkpoints.name}/{folder.name}": folder for folder in sorted(checkpoints.glob("step-*")) if NAME.fullmatch(folder.name)}
    for name in journal.checkpoints:
        if name not in relative:
            journal.checkpoint_removed(name)
    for name, folder in relative.items():
        try:
            journal.checkpoint(int(folder.name.removeprefix("step-")), name, str(read_json(folder / COMMIT)["files"][WEIGHTS]))
        except (OSError, DataError, KeyError, TypeError):  # not committed yet, or damaged: whoever resumes says so
            continue


def record_export(run_dir: Path, out: Path, recipe: str) -> None:
    """Journal an export of the run, which makes it a version of the registered model `recipe`."""
    manifest = read_manifest(out)
    facts = {"recipe_digest": manifest.recipe_digest, "checkpoint": manifest.checkpoint, "merged": manifest.merged}
    journal = Journal(run_dir / JOURNAL)
    journal.export(manifest.step, out.resolve(), digest(manifest.files), recipe, facts)
    journal.close()
