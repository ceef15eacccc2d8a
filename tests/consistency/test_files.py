"""House rules that a file can break by itself: size, names, swallowed arguments, unsafe calls, facts about one machine."""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path

import pytest
import yaml

from speechkd.core import config
from tests.consistency.house import PACKAGE, ROOT, short, sources, tree

CODE = sources("speechkd", "standins")
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "__import__", "torch.load", "os.system", "os.popen", "shutil.unpack_archive"}
UNSAFE_METHODS = {"extractall", "load_checkpoint", "all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"}


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_file_passes_500_lines_and_the_median_is_at_most_150() -> None:
    sizes = {short(path): lines(path) for path in sources("speechkd")}
    assert not {name: size for name, size in sizes.items() if size > 500}
    assert statistics.median(size for size in sizes.values() if size > 5) <= 150


def test_no_drawer_for_everything() -> None:
    assert not [short(path) for path in CODE if re.search(r"(^|_)(utils?|helpers?|misc|common)(_|$)", path.stem)]


def swallowed(module: ast.Module) -> list[str]:
    """Names of the functions that take **kwargs."""
    return [node.name for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.args.kwarg]


def test_no_argument_is_swallowed() -> None:
    found = {f"{short(path)}:{name}" for path in CODE for name in swallowed(tree(path))}
    assert not found, "a misspelt option must be an error: name every argument"


def unsafe(module: ast.Module) -> list[str]:
    """What a file does that could run, unpickle or unpack what data contains."""
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Import | ast.ImportFrom):
            aliases = [alias.name for alias in node.names]
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else aliases
            found += [f"import {name}" for name in names if name.split(".")[0] in UNSAFE_MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        named = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
        if called in UNSAFE_CALLS or called.rpartition(".")[2] in UNSAFE_METHODS:
            found.append(called)
        if called == "yaml.load" and named.get("Loader") != "_Loader":
            found.append("yaml.load without the safe loader of speechkd.core.config")
        found += [f"{key}={named[key]}" for key in ("shell", "trust_remote_code", "allow_pickle") if named.get(key, "False") != "False"]
    return found


def test_nothing_runs_unpickles_or_unpacks_what_data_contains() -> None:
    assert not {short(path): found for path in CODE if (found := unsafe(tree(path)))}
    assert issubclass(config._Loader, yaml.SafeLoader)


UNSAFE = """
eval(x)
exec(x)
torch.load(p)
import pickle
from joblib import load
yaml.load(t)
yaml.load(t, Loader=yaml.Loader)
run(c, shell=True)
f(trust_remote_code=flag)
np.load(p, allow_pickle=True)
tar.extractall(d)
"""


@pytest.mark.parametrize("line", UNSAFE.split("\n")[1:-1])
def test_the_unsafe_line_is_seen(line: str) -> None:
    assert unsafe(ast.parse(line))


def test_the_safe_line_is_left_alone() -> None:
    assert not unsafe(ast.parse("model.eval(); f(trust_remote_code=False); run(c, shell=False); yaml.load(t, Loader=_Loader)"))


def shipped() -> list[Path]:
    """Every text file that a clone holds, but this one."""
    rooms = ("speechkd", "standins", "pipelines", "shards", "ds_configs", "launch", "docker", "docs", "tests", ".ci")
    files = [path for path in ROOT.iterdir() if not path.name.startswith(".")]
    files += [path for room in rooms for path in (ROOT / room).rglob("*")]
    ends = {"", ".py", ".yaml", ".json", ".md", ".j2", ".sh", ".cfg", ".toml", ".txt", ".svg"}
    return [path for path in files if path.is_file() and path.suffix in ends and path != Path(__file__)]


def test_no_fact_about_one_machine() -> None:
    """No absolute home or work folder, and no package index or address of a file, in what is shipped."""
    pattern = re.compile(r"(?<![\w./}])/(?:root|home|Users|work)/|--(?:extra-)?index-url|--find-links")
    assert not {short(path): found for path in shipped() if (found := pattern.findall(path.read_text(encoding="utf-8")))}


def test_the_lock_pins_and_says_nothing_else() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert pins and not [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", pin)]
    assert not [pin for pin in pins if pin.startswith(("torch==", "speechkd=="))], "torch is the TORCH variable of the Makefile"


def test_every_room_is_a_package() -> None:
    folders = {path.parent for path in sources("speechkd")}
    assert not [short(folder) for folder in folders if not (folder / "__init__.py").exists()]
    assert (PACKAGE / "py.typed").exists()
