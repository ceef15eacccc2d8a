"""What the documents tell people to type exists, and what they list is there."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
import yaml

from speechkd.cli import app
from speechkd.recipe import load_recipe
from tests.consistency.house import DOCS, PACKAGE, ROOT, document_commands, shell_commands, short

VERBS = getattr(typer.main.get_command(app), "commands")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))


@pytest.mark.parametrize(("doc", "arguments"), document_commands("speechkd"))
def test_documented_command_exists(doc: str, arguments: list[str]) -> None:
    verb, *rest = arguments
    assert verb in VERBS, f"{doc}: no such verb"
    allowed = {option for parameter in VERBS[verb].params for option in parameter.opts}
    assert not [word for word in rest if word.startswith("-") and word.partition("=")[0] not in allowed | {"--help"}], doc
    files = [word for word in rest if word.startswith(("pipelines/", "shards/", "ds_configs/")) and not Path(word).name.startswith("my")]
    assert not [word for word in files if not (ROOT / word).exists()], f"{doc}: a file named `my…` stands for the reader's own"


@pytest.mark.parametrize(("doc", "arguments"), document_commands("make"))
def test_documented_target_exists(doc: str, arguments: list[str]) -> None:
    assert not {word for word in arguments if "=" not in word} - TARGETS, doc


def test_the_readme_names_both_commands() -> None:
    assert {"demo", "test"} <= {word for _, arguments in document_commands("make") for word in arguments}


def test_make_targets_are_phony_or_files() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    assert phony and set(phony.group(1).split()) == TARGETS


@pytest.mark.parametrize("doc", DOCS, ids=short)
def test_links_lead_somewhere(doc: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", doc.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (doc.parent / link).exists()]


def test_the_recipe_in_the_readme_is_a_part_of_the_real_one() -> None:
    block = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M | re.S)[0]
    recipe = yaml.safe_load((ROOT / "pipelines/meta_prompt_kd.yaml").read_text(encoding="utf-8"))
    assert not missing(yaml.safe_load(block), recipe)


def missing(shown: dict[str, Any], real: dict[str, Any], where: str = "") -> list[str]:
    """Keys of `shown` that `real` does not have with the same value."""
    found = []
    for key, value in shown.items():
        both_blocks = isinstance(value, dict) and isinstance(real.get(key), dict)
        found += missing(value, real[key], f"{where}{key}.") if both_blocks else [where + key] * (value != real.get(key))
    return found


def test_the_picture_of_the_readme_is_one_picture_in_two_palettes() -> None:
    """Both files exist, are SVG with a title and a description, load nothing, and differ in their style alone."""
    names = re.findall(r'(?:src|srcset)="([^"]+)"', (ROOT / "README.md").read_text(encoding="utf-8"))
    drawings = [(ROOT / name).read_text(encoding="utf-8") for name in names]
    assert len(drawings) == 2 and len({re.sub(r"<style>.*?</style>", "", text, flags=re.S) for text in drawings}) == 1
    for text in drawings:
        parts = {node.tag.rpartition("}")[2]: node for node in ElementTree.fromstring(text).iter()}
        assert parts["title"].text and parts["desc"].text and not {"image", "script", "foreignObject"} & set(parts)
        assert not re.findall(r"@import|url\((?!#)", text)


def test_the_file_tree_of_the_readme_is_true() -> None:
    """Every path in the tree exists, and every room of the package is in it."""
    blocks = re.findall(r"^```text\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M | re.S)
    block = next(text for text in blocks if text.startswith("speechkd/"))
    listed, folder = [], ""
    for line in block.splitlines():
        if name := re.match(r"( *)(\S+)", line):
            folder = name.group(2) if not name.group(1) else folder
            listed.append(name.group(2) if not name.group(1) else folder + name.group(2))
    assert not [path for path in listed if not (ROOT / path).exists()]
    rooms = {f"speechkd/{path.name}/" for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms <= set(listed)


@pytest.mark.parametrize("folder", ["pipelines", "shards/cards", "ds_configs", "launch/clusters"])
def test_every_file_is_listed(folder: str) -> None:
    text = (ROOT / folder.partition("/")[0] / "README.md").read_text(encoding="utf-8")
    files = [path.name for path in (ROOT / folder).iterdir() if path.suffix in {".yaml", ".json"}]
    assert files and not [name for name in files if f"`{name}`" not in text]


def test_papers_name_files_that_exist_or_are_planned() -> None:
    text = (ROOT / "PAPERS.md").read_text(encoding="utf-8")
    files = re.findall(r"`((?:speechkd|pipelines)/[^`]+)`", text)
    assert files and not [name for name in files if not (ROOT / name).exists()]
    names = {path.name for path in [*ROOT.glob("speechkd/**/*.py"), *ROOT.glob("speechkd/**/*.j2"), *ROOT.glob("pipelines/**/*.*")]}
    assert not [name for name in re.findall(r"`([\w-]+\.py)`", text) if name not in names]


def test_yaml_in_documents_is_yaml() -> None:
    for doc in DOCS:
        for block in re.findall(r"^```yaml\n(.*?)^```", doc.read_text(encoding="utf-8"), flags=re.M | re.S):
            assert yaml.safe_load(block)


def test_commands_are_read_as_a_shell_reads_them() -> None:
    text = "```bash\n# a comment\nX=1 speechkd train a.yaml \\\n  --set b=c  # why\n```\n"
    assert shell_commands(text) == [["speechkd", "train", "a.yaml", "--set", "b=c"]]


RECIPES = [
    pytest.param(rest[0], [value for option, value in pairwise(rest) if option == "--set"], id=f"{doc}:{' '.join([verb, *rest])}")
    for doc, (verb, *rest) in document_commands("speechkd")
    if rest and rest[0].startswith("pipelines/") and "my_recipe" not in rest[0]
]


@pytest.mark.parametrize(("recipe", "sets"), RECIPES)
def test_documented_sets_are_taken(recipe: str, sets: list[str]) -> None:
    """Every key and value that a document tells people to set is one that the recipe knows."""
    load_recipe(ROOT / recipe, sets)


@pytest.mark.parametrize(("doc", "arguments"), document_commands("python"))
def test_documented_module_exists(doc: str, arguments: list[str]) -> None:
    named = [after for option, after in pairwise(arguments) if option == "-m" and after not in ("pytest", "venv", "pip")]
    assert not [name for name in named if not (ROOT / f"{name.replace('.', '/')}.py").exists() and name != "speechkd"], doc
