"""README and the code agree."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from conftest import text_records, write_jsonl

from tapioca_export.cli import main
from tapioca_export.selection import CRITERIA
from tapioca_export.selection.criteria import Candidate, Round, Scored

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\.venv/bin/tapioca-export (.*?)(?:\s+#.*)?$", README, re.M)


def test_every_command_stands_in_readme() -> None:
    for name in main.list_commands(click.Context(main)):
        assert re.search(rf"\b{name}\b", README), name


def test_readme_holds_no_placeholder() -> None:
    assert "@@" not in README


def test_every_criterion_stands_in_readme_and_names_its_source() -> None:
    for name, criterion in CRITERIA.items():
        assert f"`{name}" in README
        assert "Source:" in (criterion.__doc__ or "")


def test_every_option_named_in_readme_exists() -> None:
    known = {opt for command in main.commands.values() for p in command.params for opt in p.opts}
    assert set(re.findall(r"--[a-z][a-z-]+", README)) - {"--text", "--table"} <= known


@pytest.mark.slow
def test_readmes_commands_run_as_written(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-classifier").symlink_to(tiny("bert"))
    for seed, name in enumerate(("id", "target", "airline", "banking")):
        write_jsonl(tmp_path / f"{name}.jsonl", text_records(64, seed))
    assert [line.split()[0] for line in COMMANDS][:2] == ["run", "check"]
    for line in COMMANDS:
        fast = ["--iterations", "3", "--warmup", "1"] if line.split()[0] in ("run", "benchmark") else []
        result = CliRunner().invoke(main, [*shlex.split(line), *fast])
        assert result.exit_code in ((0, 3) if line.startswith("check") else (0,)), (line, result.output)


def test_readmes_sample_row_is_one_json_object() -> None:
    row = re.search(r'^\{"text".*\}$', README, re.M)
    assert row
    assert set(json.loads(row.group())) == {"text", "label"}


def test_readmes_criterion_works_as_written() -> None:
    code = re.search(r'(@CRITERIA\.add\("middle"\).*?)```', README, re.S)
    assert code
    added: dict[str, object] = {}

    class Table:
        def add(self, name: str):
            return lambda function: added.setdefault(name, function)

    exec(code.group(1), {"CRITERIA": Table(), "Round": Round, "Scored": Scored, "Candidate": Candidate})
    probe = type("Probe", (), {"num_layers": 5})
    scored = added["middle"](Round(probe, (), (0, 2, 4), None))
    assert max(scored.candidates, key=lambda candidate: candidate.score).layer == 2


def test_makefile_has_readmes_two_commands() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert f"make {target} " in README
        assert f"\n{target}: " in makefile


def test_the_lock_names_both_ends_of_what_transformers_may_be() -> None:
    """`make test` is run with the highest version, and `make lowest` with the lowest."""
    project, lock = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "requirements.lock")
    )
    allowed = re.search(r'"transformers>=([\d.]+),<(\d+)\.(\d+)"', project)
    assert allowed
    locked = dict(re.findall(r"^transformers==(\S+) ; python_full_version (\S+) '3\.11'$", lock, re.M))
    lowest, highest = locked
    assert list(locked.values()) == ["<", ">="]
    assert lowest == allowed[1]
    assert highest.split(".")[:2] == [allowed[2], str(int(allowed[3]) - 1)]


def test_readmes_results_are_those_of_the_benchmarks_json() -> None:
    """The table's numbers are read off the JSON here, not by the code that prints it."""
    found = json.loads((ROOT / "benchmarks" / "search.json").read_text(encoding="utf-8"))
    table = README.split("<!-- begin: python benchmarks/search.py --table -->")[1].split("<!-- end -->")[0]
    rows = [line for line in table.splitlines() if "layer" in line]
    parts = [found[part][role] for part in ("pair", "encoder") for role in ("target", "id")]
    parts.append(found["decoder"])
    assert len(rows) == len(parts)
    for row, part in zip(rows, parts, strict=True):
        numbers = part["contestants"]
        assert f"| {numbers['plain']['seconds']:.0f} s |" in row
        for name in ("exact", "racing", "hybrid"):
            assert f"**{numbers[name]['speedup']:.1f}x**, {numbers[name]['tokens_ratio']:.1f}x" in row
        assert numbers["exact"]["same_trajectory"]
        assert numbers["exact"]["same_metrics"]
