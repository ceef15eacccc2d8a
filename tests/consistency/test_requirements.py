"""setup.cfg asks for what the package and the stand-ins' builders import: nothing undeclared, nothing that nobody uses."""

from __future__ import annotations

import ast
import configparser
import re
import sys

from tests.consistency.house import ROOT, sources, tree

MODULE_OF = {"pyyaml": "yaml", "scikit-learn": "sklearn"}
OPTIONAL = {"triton", "peft", "vllm", "wandb"}
"""Imports that a room guards itself, for machines that have them."""


def declared() -> set[str]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    names = [re.split(r"[<>=!~\[; ]", line)[0].lower() for line in config["options"]["install_requires"].split()]
    return {MODULE_OF.get(name, name).replace("-", "_") for name in names}


def imported() -> set[str]:
    found: set[str] = set()
    for path in sources("speechkd", "standins"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    ours = {"speechkd", *(path.stem for path in sources("standins"))}
    return found - set(sys.stdlib_module_names) - ours


def test_every_import_is_declared() -> None:
    assert not imported() - declared() - OPTIONAL


def test_every_requirement_is_imported() -> None:
    assert not declared() - imported()
