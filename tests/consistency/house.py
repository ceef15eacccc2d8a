"""What the consistency tests share: where the house stands, and how its documents are read."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "speechkd"
TOP = (
    *("README.md", "CONTRIBUTING.md", "PAPERS.md", "CHANGELOG.md", "docs/operations.md", "docs/serving.md"),
    *("docker/ops.md", "speechkd/data/FORMAT.md"),
)
FOLDERS = ("shards", "pipelines", "ds_configs", "launch", "standins", "tests/bench", "docker")
DOCS = [ROOT / name for name in (*TOP, *(f"{folder}/README.md" for folder in FOLDERS))]


def sources(*folders: str) -> list[Path]:
    """Every Python file below the folders, by path."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def short(path: Path) -> str:
    """A path as people write it: from the root of the house."""
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    """The syntax tree of one file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def shell_commands(text: str) -> list[list[str]]:
    """Words of every command in the ```bash blocks of a document; variables set in front and a virtual environment's path are dropped."""
    commands = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.match(r"^[A-Z_]+=", words[0]):
                words = words[1:]
            if words:
                commands.append([words[0].removeprefix(".venv/bin/"), *words[1:]])
    return commands


def document_commands(program: str) -> list[tuple[str, list[str]]]:
    """(document, arguments) of every documented call of `program`."""
    return [(short(doc), words[1:]) for doc in DOCS for words in shell_commands(doc.read_text(encoding="utf-8")) if words[0] == program]
