"""The layout of the package: imports go one way, and a module's name says which one it is."""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import clip_randlora

ROOT = Path(clip_randlora.__file__).parent
PACKAGE = ROOT.name

LOWEST_FIRST = (
    {"errors"},
    {"utils"},
    {"clip", "adapters"},
    {"data"},
    {"forward"},
    {"training", "confidence"},
    {"evaluation"},
    {"runs"},
    {"few_shot", "classifier"},
    {"sweep", "export", "tuning", "cluster", "labelling", "checking", "embedding"},
    {"report"},
    {PACKAGE},  # the public names
    {"app"},
    {"cli"},
    {"__main__"},
)
"""A folder or module imports only from sets before its own."""


def modules() -> dict[str, Path]:
    """The package's files by the names of their modules."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = (PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a module imports, also in functions and for types."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                source = ".".join([*parents, *filter(None, [source])])
            inner = {f"{source}.{alias.name}" for alias in node.names}
            found |= inner & known.keys() or {source}
    return found & known.keys()


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(name, path, known) for name, path in known.items()}


def room(module: str) -> str:
    """The folder or module at the top of the package."""
    return module.split(".")[1] if "." in module else module


def test_no_modules_import_each_other(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_imports_go_one_way(graph):
    level = {name: number for number, names in enumerate(LOWEST_FIRST) for name in names}
    assert {room(module) for module in graph} == set(level), "LOWEST_FIRST must list each folder"
    wrong = [
        f"{module} imports {target}"
        for module, targets in graph.items()
        for target in sorted(targets)
        if room(target) != room(module) and level[room(target)] >= level[room(module)]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_two_modules_have_one_name():
    names = Counter(path.stem for path in ROOT.rglob("*.py"))
    repeated = {name for name, count in names.items() if count > 1}
    assert repeated <= {"__init__", "config"}


def test_the_library_knows_neither_the_command_nor_the_app(graph):
    outer = {"app", "cli", "__main__"}
    assert not [
        (module, target)
        for module, targets in graph.items()
        for target in targets
        if room(module) not in outer and room(target) in outer
    ]
