"""Imports point down, heavy ones stay where they belong, and rooms stay small."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tapioca_export"
# A module may import from those below it, and from those listed beside it.
GROUND = {
    "artifacts",
    "bars",
    "config",
    "config_keys",
    "config_layers",
    "domains",
    "engines",
    "errors",
    "exhaustion",
    "external",
    "memory",
    "numbering",
    "plain_yaml",
    "precision",
    "registry",
    "sessions",
    "showing",
    "stopping",
    "telemetry",
    "tensors",
    "treatments",
}
STAGES = {
    "samples": set(),
    "tasks": {"samples"},
    "polynomial": set(),
    "models": {"tasks", "polynomial", "generation", "graphs"},
    "profiling": {"models", "tasks", "samples"},
    "costing": {"models", "profiling", "tasks", "samples"},
    "selection": set(),
    "generation": {"tasks", "samples"},
    "programs": {"tasks", "generation"},
    "graphs": set(),
    "exporting": {"models", "tasks", "samples", "generation", "graphs", "programs"},
    "benchmarking": {"tasks", "samples", "generation", "programs"},
    "reporting": set(),
    "gating": set(),
    "provenance": {"graphs"},
    "cards": set(),
}
# The story, from the ground up: each may use those before it.
STORY = [
    "reading",
    "steps",
    "graph_files",
    "checkpoints",
    "measuring",
    "remeasuring",
    "trading",
    "trying",
    "planning",
    "comparing",
    "collating",
    "intervening",
    "pipeline",
    "renewing",
    "commands",
    "variants",
    "pruning",
    "locating",
    "prover",
    "attesting",
    "verifying",
    "schemas",
    "starting",
]
HEAVY = {
    "torch": {"models", "profiling", "polynomial", "steps", "costing"},
    "transformers": {"models", "polynomial"},
}


def source_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """Return the module or package a file belongs to, right below the root."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Yield dotted names a file imports; relative ones as `.name` seen from the root."""
    depth = len(path.relative_to(PACKAGE).parts) - 1
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom) and node.level == depth + 1:
            yield from ([f".{node.module}"] if node.module else [f".{alias.name}" for alias in node.names])


def rooms_imported(path: Path) -> set[str]:
    names = {name[1:].split(".")[0] for name in imports(path) if name.startswith(".")}
    return {name for name in names if name != room(path) and not name.startswith("_")}


@pytest.mark.parametrize("path", source_files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path: Path) -> None:
    name = room(path)
    if name in ("__init__", "__main__", "cli"):
        assert "cli" not in rooms_imported(path) or name == "__main__"
    elif name in STORY:
        below = STORY[: STORY.index(name)]
        assert rooms_imported(path) <= GROUND | set(STAGES) | set(below)
    elif name in GROUND:
        assert rooms_imported(path) <= GROUND
    else:
        assert rooms_imported(path) <= GROUND | STAGES[name]


def test_only_the_command_line_imports_click() -> None:
    users = {room(path) for path in source_files() if "click" in imports(path)}
    assert users == {"cli"}


@pytest.mark.parametrize("library", sorted(HEAVY))
def test_heavy_libraries_are_imported_at_the_top_of_few_modules(library: str) -> None:
    tops = {
        room(path)
        for path in source_files()
        if any(name.split(".")[0] == library for name in imports(path, top_level_only=True))
    }
    assert tops == HEAVY[library] & tops
    assert tops


def test_selection_knows_no_torch() -> None:
    for path in (PACKAGE / "selection").glob("*.py"):
        assert not any(name.split(".")[0] in ("torch", "transformers") for name in imports(path))


def test_nothing_is_pickled() -> None:
    for path in source_files():
        assert "pickle" not in set(imports(path))
        assert "torch.load(" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", source_files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_functions_and_parameter_lists_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 80, node.name
            if path.name != "cli.py":
                assert len(node.args.args) + len(node.args.kwonlyargs) <= 8, node.name


def test_no_folder_beside_the_package_is_taken_for_one() -> None:
    """A new folder at the top would else stop every build, as setuptools finds packages by itself."""
    settings = ConfigParser()
    settings.read(PACKAGE.parent / "setup.cfg")
    assert settings["options"]["packages"] == "find:"
    assert settings["options.packages.find"]["include"] == "tapioca_export*"
