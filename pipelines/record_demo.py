"""Records a finished demo: `python pipelines/record_demo.py [runs/demo]` writes demo_results.json and the tables of both READMEs.

The record holds the commit of the run and a digest of what its figures depend on; `tests/consistency/test_demo_results.py` holds the tables
against it, and fails when the recipe, the code of training or the scorers have changed since without a new run.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "pipelines/demo_results.json"
DATA = ("pipelines/meta_prompt_kd.yaml", "shards/cards/minibabel.yaml")
CODE = ("speechkd/train", "speechkd/losses", "speechkd/models", "speechkd/evaluation/scorers", "speechkd/evaluation/grading.py")
"""What the figures depend on: comments, docstrings and layout do not count"""
NAMES = {"language": "language", "gender": "gender", "rate": "speaking rate", "digits": "digit words"}
COLUMNS = ("student", "unseen", "teacher", "untrained", "shuffled", "chance")
TABLES = {"README.md": COLUMNS, "pipelines/README.md": (*COLUMNS, "n", "unparsable")}
"""Document -> columns of its table, which begins with `| language |`"""
KEPT = (*COLUMNS, "n", "unparsable", "unseen_n", "unseen_unparsable", "intervals", "permutation", "edits", "counts", "hears")


def code_digest() -> str:
    """Digest of the recipe, the card, and the code of training and scoring."""
    found = hashlib.sha256()
    for name in DATA:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        found.update("\n".join(line.split(" #")[0].rstrip() for line in lines if line.strip() and not line.startswith("#")).encode())
    for place in CODE:
        path = ROOT / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(f"{file.relative_to(ROOT)}\n{_meaning(file.read_text(encoding='utf-8'))}\n".encode())
    return found.hexdigest()


def _meaning(source: str) -> str:
    """The syntax tree of a module, without texts that stand alone (docstrings)."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [part for part in node.body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))]
    return ast.dump(tree)


def table_lines(tasks: Mapping[str, Mapping[str, Any]], columns: tuple[str, ...]) -> list[str]:
    """The rows of a table, in per cent."""

    def cell(task: str, column: str) -> str:
        value = tasks[task].get(column)
        if value is None:
            return "–"
        return str(value) if column in ("n", "unparsable") else f"{100 * value:.1f}"

    return [f"| {name} | {' | '.join(cell(task, column) for column in columns)} |" for task, name in NAMES.items()]


def lines_of(document: str) -> list[str]:
    """The rows of the demo's table as they stand in a document."""
    rows = [line for line in (ROOT / document).read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    start = next(number for number, line in enumerate(rows) if line.startswith("| language |"))
    return rows[start : start + len(NAMES)]


def main(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    tags: dict[str, str] = {}
    for line in (run / "journal.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        tags |= record["values"] if record.get("kind") == "tag" else {}
    tasks = {name: {key: row[key] for key in KEPT if key in row} for name, row in summary["tasks"].items()}
    results = {"commit": tags.get("git"), "changed": tags.get("git_dirty") == "true", "code": code_digest(), "tasks": tasks}
    results["seconds"] = summary["seconds"]
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for document, columns in TABLES.items():
        path = ROOT / document
        text = path.read_text(encoding="utf-8")
        old, new = "\n".join(lines_of(document)), "\n".join(table_lines(tasks, columns))
        assert text.count(old) == 1, f"the demo's table is not found once in {document}"
        path.write_text(text.replace(old, new), encoding="utf-8")
    print(
        f"recorded {run} of commit {results['commit']}{' with changes' if results['changed'] else ''}; now read the text around the tables"
    )


if __name__ == "__main__":
    main(Path(*sys.argv[1:2] or ["runs/demo"]))
