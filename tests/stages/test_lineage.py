"""What a run's journal says of its checkpoints is what lies in the folder."""

from __future__ import annotations

from pathlib import Path
from shutil import rmtree

from speechkd.core.files import write_json
from speechkd.engine.checkpoint import COMMIT, WEIGHTS
from speechkd.stages.lineage import record_checkpoints
from speechkd.tracking.journal import JOURNAL, Journal, read_journal


def test_the_journal_follows_the_folder(tmp_path: Path) -> None:
    checkpoints, journal = tmp_path / "checkpoints", Journal(tmp_path / JOURNAL)
    record_checkpoints(journal, checkpoints)
    for step in (4, 8):
        write_json(checkpoints / f"step-{step:06d}" / COMMIT, {"files": {WEIGHTS: f"digest-{step}"}})
    (checkpoints / "step-000012").mkdir()  # not committed yet
    (checkpoints / ".step-000016.tmp").mkdir()
    write_json(checkpoints / "step-000020" / COMMIT, {"files": []})  # damaged
    record_checkpoints(journal, checkpoints)
    assert journal.checkpoints == ["checkpoints/step-000004", "checkpoints/step-000008"]
    rmtree(checkpoints / "step-000004")
    record_checkpoints(Journal(tmp_path / JOURNAL), checkpoints)  # the run was killed before it could say so
    found = [(record["step"], record["digest"], record["kept"]) for record in read_journal(tmp_path / JOURNAL)]
    assert found == [(4, "digest-4", True), (8, "digest-8", True), (4, "digest-4", False)]
