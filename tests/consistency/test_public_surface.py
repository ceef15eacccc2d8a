"""Nothing in `speechkd/` that only tests call, and no code outside a loss that looks inside its configuration.

A public function, class, method or property must be used by the package, the stand-ins or the pipelines, or be one of the few
names that code outside this repository may import (`SURFACE`). Functions and classes are followed through imports and
re-exports. Methods are matched by name alone: any access `x.name` counts as a use of every method called `name`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import pytest

from tests.consistency.house import PACKAGE, ROOT, short, sources, tree

# What code outside the repository may import, as section 3 of the design lists it. A name that is not listed there does not belong here.
SURFACE = {
    # for training loops that hold both models' logits
    "speechkd.losses.divergences": {"forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"},
    # the same, from stored top-k log-probabilities
    "speechkd.losses.topk_kd": {"topk_kl"},
    # to compare the hidden states of any two models
    "speechkd.losses.attn_cka": {"attention_weighted_cka"},
    # for other models' heads and projectors
    "speechkd.kernels": {"linear_topk_kl", "linear_kl", "linear_cross_entropy", "stack_norm_mlp", "weighted_cka"},
    # to read published shards with other tools
    "speechkd.data": {"open_shards", "Plan"},
    # to run an exported student
    "speechkd.models": {"load_student"},
}

# Methods that a library calls by name, by the base class that asks for them.
CALLED_BY_LIBRARIES = {
    "nn.Module": {"forward", "train"},
    "autograd.Function": {"forward", "backward"},
    "Auth": {"auth_flow"},
    "BaseModel": {"model_config", "model_post_init"},
    "Config": {"model_config", "model_post_init"},
}

# Decorators that hand the function to a library.
REGISTERING = {"app.command", "app.callback", "field_validator", "model_validator", "field_serializer", "model_serializer"}

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Definition:
    """A public function or class of a module (`owner` is empty), or a public method of the class `owner`."""

    module: str
    owner: str
    name: str
    node: ast.stmt
    path: Path
    external: bool  # a library calls it
    used_in: list[frozenset[int]] = field(default_factory=list)  # for each use: ids of the functions and classes around it

    @property
    def title(self) -> str:
        return ".".join(part for part in (self.module, self.owner, self.name) if part)


@dataclass
class Use:
    """A name, attribute, call or string somewhere in a file."""

    node: ast.AST
    bindings: dict[str, str]  # what a name means there: the dotted name that an import gave it, "" for a local variable
    around: frozenset[int]  # ids of the functions and classes around it
    names: frozenset[str]  # their names


@dataclass
class Module:
    """A parsed file: what its imports bind at the top, and every use."""

    path: Path
    name: str
    tree: ast.Module
    bindings: dict[str, str]
    uses: list[Use] = field(default_factory=list)


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def scope(node: ast.AST) -> Iterator[ast.AST]:
    """What stands in a function's or file's own body: nested functions and classes themselves, but not what is in them."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (*FUNCTION, ast.ClassDef, ast.Lambda)):
            yield from scope(child)


def imports(node: ast.AST) -> dict[str, str]:
    """Local name -> dotted name, for the imports of one scope. The package imports itself by full names only."""
    bindings = {}
    for each in scope(node):
        if isinstance(each, ast.ImportFrom):
            assert not each.level, "relative import"
            bindings |= {alias.asname or alias.name: f"{each.module}.{alias.name}" for alias in each.names}
        elif isinstance(each, ast.Import):
            bindings |= {
                alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0] for alias in each.names
            }
    return bindings


def variables(function: ast.AST) -> dict[str, str]:
    """Arguments and assigned names of a function: they hide what a module calls the same."""
    stored = {each.id for each in scope(function) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
    return dict.fromkeys(stored | {each.arg for each in scope(function) if isinstance(each, ast.arg)}, "")


def read_module(path: Path, root: Path) -> Module:
    parsed = tree(path)
    module = Module(path, module_name(path, root), parsed, imports(parsed))
    collect_uses(module, parsed, module.bindings, frozenset(), frozenset())
    return module


def collect_uses(module: Module, node: ast.AST, bindings: dict[str, str], around: frozenset[int], names: frozenset[str]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Name | ast.Attribute | ast.Constant | ast.Call):
            module.uses.append(Use(child, bindings, around, names))
        if isinstance(child, FUNCTION):
            inner = bindings | variables(child) | imports(child)
            collect_uses(module, child, inner, around | {id(child)}, names | {child.name})
        elif isinstance(child, ast.ClassDef):
            collect_uses(module, child, bindings, around | {id(child)}, names | {child.name})
        else:
            collect_uses(module, child, bindings, around, names)


def is_called_by_a_library(node: ast.stmt, bases: list[str]) -> bool:
    """Whether a decorator registers the function, or a base class of its class asks for a method of that name."""
    decorators = [ast.unparse(each.func if isinstance(each, ast.Call) else each) for each in getattr(node, "decorator_list", [])]
    wanted = {name for base, names in CALLED_BY_LIBRARIES.items() for name in names if any(each.endswith(base) for each in bases)}
    return getattr(node, "name", "") in wanted or bool(REGISTERING & set(decorators))


def definitions(module: Module) -> Iterator[Definition]:
    for node in module.tree.body:
        if isinstance(node, (*FUNCTION, ast.ClassDef)) and not node.name.startswith("_"):
            yield Definition(module.name, "", node.name, node, module.path, is_called_by_a_library(node, []))
        if isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base) for base in node.bases]
            for method in node.body:
                if isinstance(method, (*FUNCTION, ast.ClassDef)) and not method.name.startswith("_"):
                    yield Definition(module.name, node.name, method.name, method, module.path, is_called_by_a_library(method, bases))


def home_of(dotted: str, modules: dict[str, Module]) -> str:
    """The dotted name where a re-exported name is defined: `speechkd.data.Plan` -> `speechkd.data.plan.plan.Plan`."""
    for _ in range(10):
        home, _, name = dotted.rpartition(".")
        found = modules[home].bindings.get(name) if home in modules else None
        if found is None or found == dotted:
            return dotted
        dotted = found
    return dotted


def dotted_name(node: ast.expr, bindings: dict[str, str]) -> str:
    """`cards.load_card` -> `speechkd.data.cards.load_card` where the file imports `cards`; empty for what is no import's."""
    if isinstance(node, ast.Name):
        return bindings.get(node.id, "")
    if isinstance(node, ast.Attribute) and (base := dotted_name(node.value, bindings)):
        return f"{base}.{node.attr}"
    return ""


def find_uses(package: list[Module], users: list[Module], texts: list[str]) -> list[Definition]:
    """Every public definition of the package, with its uses in `users` (modules) and `texts` (templates, setup.cfg)."""
    modules = {module.name: module for module in package}
    found = [definition for module in package for definition in definitions(module)]
    functions = {definition.title: definition for definition in found if not definition.owner}
    methods: dict[str, list[Definition]] = {}
    for definition in found:
        if definition.owner:
            methods.setdefault(definition.name, []).append(definition)

    def use(dotted: str, around: frozenset[int]) -> None:
        if definition := functions.get(home_of(dotted, modules)):
            definition.used_in.append(around)

    for module in users:
        for each in module.uses:
            node, attribute = each.node, None
            if isinstance(node, ast.Name):
                use(each.bindings.get(node.id, f"{module.name}.{node.id}"), each.around)
            elif isinstance(node, ast.Attribute):
                attribute = node.attr
                use(dotted_name(node, each.bindings), each.around)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr") and len(node.args) > 1:
                attribute = getattr(node.args[1], "value", None)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.]+:\w+", node.value):
                use(node.value.replace(":", "."), each.around)
            # `super().x()` inside another `x` is no use of `x`
            if isinstance(attribute, str) and attribute not in each.names:
                for definition in methods.get(attribute, []):
                    definition.used_in.append(each.around)
    for text in texts:
        for dotted in re.findall(r"[\w.]+:\w+", text):
            use(dotted.replace(":", "."), frozenset())
        for attribute in re.findall(r"\.(\w+)", text):
            for definition in methods.get(attribute, []):
                definition.used_in.append(frozenset())
    return found


def unused(package: list[Module], users: list[Module], texts: list[str], surface: dict[str, set[str]]) -> dict[str, str]:
    """Title -> file:line of every definition that nothing uses, or only what is unused itself."""
    modules = {module.name: module for module in package}
    public = {home_of(f"{home}.{name}", modules) for home, names in surface.items() for name in names}
    found = find_uses(package, users, texts)
    dead: dict[int, Definition] = {}
    while True:
        more = {
            id(each.node): each
            for each in found
            if id(each.node) not in dead
            and each.title not in public
            and not each.external
            and all(around & {id(each.node), *dead} for around in each.used_in)
        }
        if not more:
            break
        dead |= more
    owners = {each.title for each in dead.values() if not each.owner}
    return {
        each.title: f"{short(each.path) if each.path.is_relative_to(ROOT) else each.path.name}:{each.node.lineno}"
        for each in dead.values()
        if not (each.owner and f"{each.module}.{each.owner}" in owners)
    }


def texts_that_name_code(root: Path) -> list[str]:
    """Templates, which read attributes, and setup.cfg, which names the program's entry point."""
    return [path.read_text(encoding="utf-8") for path in [*sorted(PACKAGE.rglob("*.j2")), root / "setup.cfg"]]


def test_nothing_is_there_for_tests_alone() -> None:
    package = [read_module(path, ROOT) for path in sources("speechkd")]
    others = [read_module(path, ROOT) for path in sources("standins", "pipelines")]
    found = unused(package, [*package, *others], texts_that_name_code(ROOT), SURFACE)
    assert not found, "\n".join(f"{place} {title}" for title, place in found.items())


@pytest.mark.parametrize("home", SURFACE)
def test_the_public_surface_is_there(home: str) -> None:
    module = import_module(home)
    assert all(callable(getattr(module, name)) for name in SURFACE[home])


TOY = {
    "toy/__init__.py": "from toy.parts import exported",
    "toy/parts.py": """
import torch
from torch import nn

def used(): return used_by_used()
def used_by_used(): ...
def dead(): return dead()
def used_by_dead_only(): ...
def dead_caller(): return used_by_dead_only()
def tests_only(): ...
def exported(): ...
def in_table(): ...
def public(): ...
def hidden_by_a_variable(): ...
def reads(hidden_by_a_variable): return hidden_by_a_variable

class Net(nn.Module):
    def forward(self): ...
    def train(self): super().train()
    def dead_method(self): super().dead_method()
    def used_method(self): ...
    def in_template(self): ...

class DeadClass:
    def used_method(self): return DeadClass()
""",
    "toy/main.py": """
import toy
from toy import parts as others
from toy.parts import Net, dead as never_called, tests_only

TABLE = {"part": "toy.parts:in_table"}
toy.exported(), others.used(), Net().used_method(), others.reads(1)

def verb():
    from toy.parts import dead_method
    return dead_method
""",
    "tests/test_parts.py": "from toy.parts import tests_only\ntests_only()",
}


def test_what_is_unused_is_found(tmp_path: Path) -> None:
    for name, text in TOY.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    package = [read_module(path, tmp_path) for path in sorted((tmp_path / "toy").rglob("*.py"))]
    found = unused(package, package, ["{{ net.in_template }} toy.main:verb"], {"toy.parts": {"public"}})
    names = {"dead", "used_by_dead_only", "dead_caller", "tests_only", "hidden_by_a_variable", "DeadClass", "Net.dead_method"}
    assert set(found) == {f"toy.parts.{name}" for name in names}
    assert found["toy.parts.dead"] == "parts.py:7"
    tests = read_module(tmp_path / "tests/test_parts.py", tmp_path)
    assert "toy.parts.tests_only" not in unused(package, [*package, tests], ["toy.main:verb"], {}), "a caller makes it used"


def test_only_a_loss_looks_inside_its_configuration() -> None:
    """`getattr(config, "k", None)` asks whether a part happens to have a setting: the part should answer for itself."""
    peek = re.compile(r"getattr\((config|loss),")
    lines = [(path, n, line) for path in sources("speechkd") for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)]
    assert not [f"{short(path)}:{n} {line.strip()}" for path, n, line in lines if peek.search(line)]
