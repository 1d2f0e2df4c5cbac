"""What goes out is what the commit says, and what comes in is known: distributions, audit, SECURITY.md."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import json
import re
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.version import Version

ROOT = Path(__file__).parent.parent
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(name: str, *flaws: str, **more: object) -> dict[str, Any]:
    vulns = [{"id": flaw, "fix_versions": ["2.0"], "aliases": []} for flaw in flaws]
    return {"name": name, **(more or {"version": "1.0", "vulns": vulns})}


@pytest.mark.parametrize(
    ("packages", "words", "code"),
    [
        ([package("a"), package("b")], "2 packages were audited; 0 vulnerabilities", 0),
        ([package("a", "X-1"), package("b")], "a 1.0: X-1, mended in 2.0.", 1),
        ([package("a"), package("b", skip_reason="not found")], "1 were not audited: b.", 1),
        ([package(n, skip_reason="not found") for n in "ab"], "cannot be reached: it knows none of 2", 1),
    ],
)
def test_an_audit_passes_only_where_every_package_was_looked_up(
    packages: list[dict[str, Any]], words: str, code: int
) -> None:
    lines, found = script("audit").judged(json.dumps({"dependencies": packages, "fixes": []}), "")
    assert words in "\n".join(lines)
    assert found == code


@pytest.mark.parametrize("output", ["", "{", "[]", '{"fixes": []}'])
def test_an_audit_that_reached_nothing_says_so_and_fails(output: str) -> None:
    lines, code = script("audit").judged(output, "Traceback:\nConnectionError: no route\n")
    assert lines == [
        "The lock was not audited, the vulnerability service cannot be reached: ConnectionError: no route"
    ]
    assert code == 1


def sdist(file: Path, when: int, owner: int, names: list[str]) -> Path:
    with tarfile.open(file, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uid, member.uname = 1, when, owner, f"user{owner}"
            tar.addfile(member, io.BytesIO(b"x"))
    return file


def test_an_sdist_tells_nothing_of_when_and_by_whom_it_was_built(tmp_path: Path) -> None:
    files = [
        sdist(tmp_path / "one.tar.gz", 1_000, 0, ["p/a", "p/b"]),
        sdist(tmp_path / "other.tar.gz", 2_000, 7, ["p/b", "p/a"]),
    ]
    for file in files:
        script("make_dist")._settle(file, 5_000)
    one, other = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    assert one == other
    assert int.from_bytes(files[0].read_bytes()[4:8], "little") == 5_000  # of the gzip around it
    with tarfile.open(files[0]) as tar:
        found = {member.name: (member.mtime, member.uid, member.uname) for member in tar}
        read = tar.extractfile("p/a")
        assert read is not None
        assert read.read() == b"x"
    assert found == dict.fromkeys(("p/a", "p/b"), (5_000, 0, ""))


def test_the_lowest_versions_that_are_allowed_are_those_that_are_tried() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = (ROOT / "requirements.lowest.lock").read_text(encoding="utf-8").splitlines()
    tried = dict(line.split("==") for line in lines if not line.startswith("#"))
    allowed = re.findall(r'"([a-z][\w-]*)(?:\[[\w,]+\])?>=([\d.]+)[^"]*"', project)
    assert len(allowed) > 40
    for name, least in allowed:
        if name in ("onnxruntime-gpu", "tomli", "setuptools"):  # for other machines, or other Pythons
            continue
        assert Version(tried[name]) == Version(least), name


def test_what_makes_a_release_is_locked_and_the_makefile_has_it() -> None:
    pins = (ROOT / ".ci/requirements.lock").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"#.*|[a-z-]+==[\d.]+", line) for line in pins)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("dist", "sbom", "audit"):
        assert re.search(rf"^{target}: .*\$\(SUPPLY\)/ready$", makefile, re.MULTILINE)
        assert f"make {target}`" in SECURITY


def test_every_promise_names_a_test_that_there_is() -> None:
    promises = [line for line in SECURITY.splitlines() if line.startswith("| ") and "`tests/" in line]
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", SECURITY)
    assert len(promises) >= 10
    assert len(named) >= len(promises)
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
            f"{file}::{name}"
        )
