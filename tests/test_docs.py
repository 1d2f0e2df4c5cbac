"""README and the code agree."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import reports
import yaml
from click.testing import CliRunner
from conftest import text_records, write_jsonl
from transformers import pipeline

from tapioca_export.cli import main
from tapioca_export.gating import check
from tapioca_export.gating.expressions import fields_of
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


@pytest.mark.parametrize("name", ["ci.md", "comparing.md", "provenance.md"])
def test_every_option_named_in_the_documents_exists(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    known = {opt for command in main.commands.values() for p in command.params for opt in p.opts}
    assert set(re.findall(r"--[a-z][a-z-]+", text)) - {"--rm"} <= known


PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_line_in_the_documents_is_understood(page: Path) -> None:
    """Only parsed: options exist, take what they are given, and every argument has its place."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", text, re.M | re.S)
    typed = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    typed += [line for line in re.findall(r"`(tapioca-export [^`\n]+)`", text) if "..." not in line]
    for line in (line.removeprefix(".venv/bin/") for line in typed):
        words = shlex.split(line, comments=True) if line.startswith("tapioca-export ") else []
        if len(words) > 1 and words[1] in main.commands:
            command = main.commands[words[1]]
            values, rest, _ = command.make_parser(click.Context(command)).parse_args(words[2:])
            assert not rest, line
            assert values or not command.params or len(words) == 2


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_links_between_the_documents_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#([^)]*))?\)", text):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in headings}
            assert anchor in anchors, anchor


def test_the_table_of_optimised_graphs_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import graphs

    measured = json.loads((ROOT / "benchmarks" / "graphs.json").read_text(encoding="utf-8"))
    shown = graphs.PAGE.read_text(encoding="utf-8").split(graphs.BEGIN)[1].split(graphs.END)[0]
    assert shown.strip() == "\n".join(graphs.lines(measured["rows"]))
    sys.modules.pop("graphs", None)


def test_the_tables_of_cut_files_are_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import surgery

    rows = json.loads((ROOT / "benchmarks" / "surgery.json").read_text(encoding="utf-8"))["rows"]
    shown = surgery.PAGE.read_text(encoding="utf-8").split(surgery.BEGIN)[1].split(surgery.END)[0]
    assert shown.strip() == "\n".join(surgery.lines(rows))
    *compared, large = rows
    assert [(row["case"], row["layers"]) for row in compared] == [("encoder", 12), ("decoder", 24)]
    for row in compared:
        assert row["times_faster"]["cut"] >= surgery.FASTER
        assert row["difference"] <= surgery.WITHIN
        assert row["four_variants"] <= surgery.ROOM
    assert large["bytes"] > 2e9
    assert large["seconds"]["graph alone"] < surgery.SECONDS
    assert max(large["peak_bytes"].values()) < surgery.MEMORY
    sys.modules.pop("surgery", None)


def test_a_pruned_graph_is_as_much_faster_as_it_is_shorter_and_faster_than_its_peers() -> None:
    """At 97 % of the ideal in every cell; how close the closest peer comes is what docs/exports.md says."""
    rows = json.loads((ROOT / "benchmarks" / "graphs.json").read_text(encoding="utf-8"))["rows"]
    assert {(row["size"], row["batch_size"]) for row in rows} == {
        (size, batch_size) for size in ("BERT-base", "MiniLM") for batch_size in (1, 8)
    }
    closest = []
    for row in rows:
        assert row["ideal"] == pytest.approx(row["layers"] / row["kept"])
        assert len(row["speedup"]) == 9
        for speedup in row["speedup"].values():
            assert speedup["median"] / row["ideal"] >= 0.97
        for peers in row["against"].values():
            assert len(peers) == 5
            assert all(value["interval"][0] > 1.0 for name, value in peers.items() if name != "ours")
        fp32 = {name: value for name, value in row["against"]["fp32"].items() if name != "ours"}
        assert min(fp32, key=lambda name: fp32[name]["median"]) == "Optimum"
        closest.append(fp32["Optimum"]["median"])
    assert {f"{found - 1:.0%}" for found in closest} == {"1%", "2%"}


def test_a_table_goes_between_its_own_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from recording import put_between

    page, mark = tmp_path / "page.md", "<!-- end -->"
    text = f"one\n<!-- a -->\n\nold\n\n{mark}\ntwo\n<!-- b -->\n\nkept\n\n{mark}\nthree\n"
    page.write_text(text)
    put_between(page, "<!-- a -->", mark, "new")
    assert page.read_text() == text.replace("old", "new")


def test_the_reference_is_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import reference

    assert reference.PAGE.read_text(encoding="utf-8") == reference.reference()
    sys.modules.pop("reference", None)


@pytest.mark.xdist_group("end-to-end")
def test_ten_lines_serve_an_export(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As docs/serving.md has them, and as the stock pipeline answers."""
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    ask = pipeline("text-classification", str(finished / "pruned/checkpoint"))
    for row in text_records(6, 3, labelled=False):
        exec(code, {"folder": finished / "pruned/onnx", "text": row["text"]})
        assert capsys.readouterr().out.strip() == ask(row["text"], truncation=True)[0]["label"]


def test_every_option_of_check_verify_and_report_is_documented() -> None:
    for command, name in (("check", "ci.md"), ("verify", "provenance.md"), ("report", "comparing.md")):
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        options = [p.opts[-1] for p in main.commands[command].params if p.opts[-1].startswith("--")]
        everywhere = ("--json", "--quiet", "--verbose")  # these are in docs/cli.md
        assert [option for option in options if option not in everywhere and option not in text] == []


def test_the_page_of_the_command_line_names_every_command_and_exit_code() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [name for name in main.commands if f"tapioca-export {name}" not in text] == []
    assert re.findall(r"^\| (\d+(?:, \d+)*) \|", text, re.M) == ["0", "1", "2", "3", "130, 143"]
    assert {"`--json`", "`--quiet`", "`--verbose`", "`-q`", "`-v`"} <= set(re.findall(r"`--?\w+`", text))


def test_the_documents_expressions_are_understood() -> None:
    text = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
    block = text.split("## Expressions")[1].split("```")[1]
    measured = reports.benchmark(targets={"air-line": reports.GAIN})
    expressions = [line for line in block.splitlines() if line]
    verdict = check(reports.report(benchmark=measured), fail_if=expressions)
    assert len(verdict.checks) == len(expressions) >= 7
    assert not [item.message for item in verdict.checks if item.message.startswith("Not measured")]
    table = text.split("Short names")[1].split("An expression that")[0]
    names = re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    assert set(names) <= set(fields_of(reports.report()))
    assert {"target", "id", "speedup", "size_ratio"} <= set(names)


def test_the_documents_pipelines_name_inputs_that_exist() -> None:
    text = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
    action, template = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.S))
    inputs = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))["inputs"]
    assert set(action[0]["with"]) <= set(inputs)
    spec = next(yaml.safe_load_all((ROOT / "templates/check.yml").read_text(encoding="utf-8")))
    given = template["include"][0]["inputs"]
    required = {name for name, about in spec["spec"]["inputs"].items() if "default" not in (about or {})}
    assert required <= set(given) <= set(spec["spec"]["inputs"])


COMPLETION = (ROOT / "docs/completion.md").read_text(encoding="utf-8")
SCRIPTS = dict(re.findall(r"`(_TAPIOCA_EXPORT_COMPLETE=(\w+)_source) tapioca-export > ~/\S+`", COMPLETION))
REGISTERS = {
    "bash": "complete -o nosort -F _tapioca_export_completion tapioca-export",
    "zsh": "compdef _tapioca_export_completion tapioca-export",
    "fish": "complete --no-files --command tapioca-export",
}


def completion(setting: str, **more: str) -> str:
    """Return what the installed program prints when a shell asks, by the environment alone."""
    name, _, value = setting.partition("=")
    found = CliRunner().invoke(main, [], prog_name="tapioca-export", env={name: value, **more})
    assert (found.exit_code, found.stderr) == (0, "")
    return found.stdout


def test_every_shells_completion_is_documented() -> None:
    assert sorted(SCRIPTS.values()) == sorted(REGISTERS)


@pytest.mark.parametrize("shell", REGISTERS)
def test_the_script_of_each_shell_is_printed_as_documented(shell: str) -> None:
    (setting,) = (setting for setting, name in SCRIPTS.items() if name == shell)
    script = completion(setting)
    assert REGISTERS[shell] in script
    assert f"_TAPIOCA_EXPORT_COMPLETE={shell}_complete" in script  # with which it asks the program


@pytest.mark.parametrize("shell", REGISTERS)
@pytest.mark.parametrize(
    ("words", "found"), [("ver", "verify"), ("verify --has", "--hashes-only"), ("report --com", "--compare")]
)
def test_a_shell_that_asks_is_answered(shell: str, words: str, found: str) -> None:
    line, last = f"tapioca-export {words}", words.split()[-1]
    count = last if shell == "fish" else str(len(words.split()))
    asked = {"COMP_WORDS": line, "COMP_CWORD": count}
    answer = completion(f"_TAPIOCA_EXPORT_COMPLETE={shell}_complete", **asked)
    assert re.split(r"[,\n\t]", answer)[:2] == ["plain", found]


def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    program = tmp_path / "tapioca-export"
    code = "from tapioca_export.cli import main; main(prog_name='tapioca-export')"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}"\n', encoding="utf-8")
    program.chmod(0o755)
    (tmp_path / "script").write_text(completion("_TAPIOCA_EXPORT_COMPLETE=bash_source"), encoding="utf-8")
    press = "COMP_WORDS=(tapioca-export ver) COMP_CWORD=1; _tapioca_export_completion tapioca-export"
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", f'. {tmp_path}/script; {press}; echo "${{COMPREPLY[@]}}"'],
        env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "verify"


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
            told = f"**{numbers[name]['speedup']:.1f}x**, {numbers[name]['tokens_ratio']:.1f}x"
            points = "" if name == "exact" else f", {numbers[name]['points_from_tale']:+.1f}"
            assert f"{told}{points} |" in row
        assert numbers["exact"]["same_trajectory"]
        assert numbers["exact"]["same_metrics"]


def test_ci_calls_commands_that_there_are() -> None:
    """The workflow, and what every change goes through, name targets of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = {name: [step.get("run") for step in job["steps"]] for name, job in workflow["jobs"].items()}
    assert {name: commands[-1] for name, commands in steps.items()} == {
        "test": "make test", "slow": "make slow", "fuzz": "make fuzz",
    }  # fmt: skip
    called = re.findall(r"^make (?:-j 2 )?([a-z-]+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert called == ["test"]
    assert {"test", "slow", "fuzz", "lowest", "consumers"} <= targets
    slow = re.search(r"^slow:\n\t(.*)$", makefile, re.MULTILINE)
    assert slow is not None
    assert {"lowest", "consumers"} <= set(slow[1].split())
