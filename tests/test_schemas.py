"""Published schemas accept what is written and refuse what is not; `init` writes what `run` takes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import reports
from click.testing import CliRunner, Result
from conftest import text_records, write_jsonl

import tapioca_export
from tapioca_export import verify
from tapioca_export.artifacts import Bounds, Compared, Comparison, Cost, Plan, read, to_json
from tapioca_export.cli import main
from tapioca_export.cli.config_files import _parse_config
from tapioca_export.collating import collate, compared_run
from tapioca_export.config import RunConfig
from tapioca_export.config_keys import TYPES
from tapioca_export.errors import ConfigError
from tapioca_export.provenance import make_run
from tapioca_export.reporting.markdown import json_text
from tapioca_export.schemas import kinds, schema

pytestmark = pytest.mark.xdist_group("end-to-end")

Tiny = Callable[[str], Path]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def validate(document: Any, kind: str) -> None:
    checker = jsonschema.Draft202012Validator
    checker(schema(kind), format_checker=checker.FORMAT_CHECKER).validate(document)


def is_valid(document: Any, kind: str) -> bool:
    return bool(jsonschema.Draft202012Validator(schema(kind)).is_valid(document))


def test_every_json_file_of_a_run_folder_is_valid_by_its_kind(finished: Path) -> None:
    found = set()
    for file in sorted(finished.rglob("*.json")):
        document = json.loads(file.read_text(encoding="utf-8"))
        if "schema_version" in document:
            validate(document, document["kind"])
            found.add(document["kind"])
    assert found == {
        "benchmark",
        "export",
        "ort_session",
        "profile",
        "provenance",
        "report",
        "run",
        "selection",
    }


def written(finished: Path) -> dict[str, Any]:
    """Return an artifact of every kind."""
    bounds, cost = Bounds(1, 2.5), Cost(1, 2, 3, 4.0)
    compared = Compared("tale", (4,), 1, "done", reports.GAIN, reports.NO_CHANGE, cost)
    plan = Plan(
        "m", "text-classification", "tale", "greedy", False, 4, 9, 2, 32, (32, 40), bounds, bounds, bounds,
        bounds, bounds, 1, 2, 3, 0.5, "cpu", "local", 1, "none",
    )  # fmt: skip
    report = reports.report(intervention=reports.intervention())
    return {
        "benchmark": report.benchmark,
        "comparison": Comparison("m", "text-classification", 4, 1, (compared,)),
        "export": reports.export(),
        "intervention": report.intervention,
        "ort_session": read(finished / "pruned/onnx/ort_session.json", kinds()["ort_session"]),
        "plan": plan,
        "profile": report.profile,
        "provenance": read(finished / "pruned/onnx/provenance.json", kinds()["provenance"]),
        "report": report,
        "run": report.run,
        "run_comparison": collate([compared_run(name, Path(name), report) for name in ("a", "b")]),
        "selection": report.selection,
        "verification": verify(finished, proofs=False),
    }


def test_every_kind_is_valid_and_is_not_without_any_of_its_required_keys(finished: Path) -> None:
    artifacts = written(finished)
    assert set(artifacts) == set(kinds())
    for kind, artifact in artifacts.items():
        document = json.loads(to_json(artifact))
        validate(document, kind)
        assert {"kind", "schema_version"} <= set(schema(kind)["required"])
        for key in schema(kind)["required"]:
            assert not is_valid({name: value for name, value in document.items() if name != key}, kind), key
        assert not is_valid({**document, "kind": "another"}, kind)
        assert not is_valid({**document, "schema_version": 99}, kind)
        assert is_valid({**document, "of_tomorrow": 1}, kind)


def test_values_of_another_type_are_refused() -> None:
    document = json.loads(to_json(reports.selection()))
    for key, value in (("drop", [1.5]), ("num_layers", "four"), ("steps", {}), ("model", None)):
        assert not is_valid({**document, key: value}, "selection")


def test_schemas_are_schemas_and_the_command_prints_them() -> None:
    printed = json.loads(call("schema").stdout)
    assert printed == schema()
    assert set(printed) == {"config", *kinds()}
    for found in printed.values():
        jsonschema.Draft202012Validator.check_schema(found)
    assert json.loads(call("schema", "export").stdout) == printed["export"]


def test_an_unknown_kind_is_refused_with_the_nearest() -> None:
    result = call("schema", "selektion")
    assert result.exit_code == 1
    assert "Did you mean 'selection'?" in result.stderr


# --- the config file ------------------------------------------------------------------------


def test_the_schema_of_the_config_file_has_every_key_and_its_help() -> None:
    found = schema("config")["properties"]
    assert set(found) == {name.replace("_", "-") for name in TYPES}
    for item in fields(RunConfig):
        assert found[item.name.replace("_", "-")]["description"] == item.metadata["help"]


ACCEPTED: dict[str, Any] = {
    "drop": [3, "3,4", [3, "encoder:1"]],
    "format": ["onnx", ["onnx", "torchscript"]],
    "batch-size": [2, [1, 8]],
    "pick": [2, "bsba"],
    "columns": ["text=review", {"text": "review"}],
    "target": ["a.jsonl", {"a": "a.jsonl", "b": "b.jsonl"}],
    "epsilon": [0.5, 1],
    "drop-leaks": [True],
    "criterion": ["tapioca"],
    "alphas": ["0,0.5", [0, 0.5]],
}
REFUSED: dict[str, Any] = {
    "epsilom": [1],
    "warmup": [-1],
    "batch-size": [0, [1, 0]],
    "format": ["onix", ["onnx", "onix"]],
    "criterion": ["tail"],
    "epsilon": ["much"],
    "dtype": ["fp64"],
    "drop-leaks": ["perhaps"],
    "drop": [{"a": 1}],
    "overwrite": [[True]],
}


def cases(table: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, values in table.items() for value in values]


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[RunConfig]:
    """What reaches `run` in place of running it; the names in it are checked."""
    configs: list[RunConfig] = []

    def run(config: RunConfig) -> Any:
        from tapioca_export import steps

        steps.check(replace(config, id=None, target=None, objective="mean"), searches=True)
        configs.append(config)
        return reports.report()

    monkeypatch.setattr(tapioca_export, "run", run)
    monkeypatch.chdir(tmp_path)
    return configs


def run_with(key: str, value: Any) -> int:
    Path("c.yaml").write_text(json.dumps({key: value} | ({"criterion": "fixed"} if key == "drop" else {})))
    return call("run", "-m", "m", "-q", "-c", "c.yaml").exit_code


@pytest.mark.parametrize(("key", "value"), cases(ACCEPTED))
def test_schema_and_command_accept_the_same(key: str, value: Any, received: list[RunConfig]) -> None:
    assert is_valid({key: value}, "config")
    assert run_with(key, value) == 0
    assert received


@pytest.mark.parametrize(("key", "value"), cases(REFUSED))
def test_schema_and_command_refuse_the_same(key: str, value: Any, received: list[RunConfig]) -> None:
    assert not is_valid({key: value}, "config")
    assert run_with(key, value) in (1, 2)
    assert not received


# A text that each of these keys may hold, and a list of it, where it is not any text; `file` is there.
TEXT = {
    "alphas": "0.5", "columns": "text=review", "device": "cpu", "drop": "encoder:2", "layers": "1",
    "max-memory": "8GB", "output": "out", "pick": "bsba", "provider": "cpu", "target-ort": "1.17",
    "weights": "a=1",
}  # fmt: skip
# Values of every type, and of every shape; some are right for each key, most are wrong.
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2.0, 18, 0.5, 1.5, 2**32 - 1, 2**32, [], [1], [2], [0.5], [-1], [True], [None],
    [[1]], [{}], {}, {"a": "file"}, {"a": 1}, {"a": -1}, {"a": ["file"]},
)  # fmt: skip
# Texts that are wrong where a text is one of a few, or none at all.
WRONG = ("", "yes", "-1")
# What a key takes beside it to have a meaning.
WRITES = {"max-new-tokens": 9}
QUANTIZES = {"quantize": "int8"}
BESIDE: dict[str, dict[str, Any]] = {
    "calibration-samples": QUANTIZES, "drop": {"criterion": "fixed"}, "dtype": {"format": "pt2"},
    "extract": WRITES, "extract-last": WRITES | {"extract": "x"}, "few-shot": {"num-fewshot": 5},
    "max-memory": {"device": "auto"}, "num-fewshot": {"few-shot": "file"}, "num-workers": {"engine": "ray"},
    "per-channel": QUANTIZES, "ray-address": {"engine": "ray"},
}  # fmt: skip
DOMAIN = {"target": {"a": "other"}}
CONFIG = schema("config")


def beside(key: str, value: Any) -> dict[str, Any]:
    """Return what makes a right value of a key one that has a meaning."""
    if key == "objective":
        return DOMAIN | ({"weights": "a=1"} if value == "weights" else {})
    if key == "weights" and value:
        return DOMAIN | {"objective": "weights"}
    if key == "target-report" and value and isinstance(value, dict):
        return DOMAIN
    if (key, value) == ("criterion", "fixed"):
        return {"drop": 1}
    return BESIDE.get(key, {}) if value not in (None, [], ()) else {}


def taken(key: str, value: Any) -> bool:
    """Tell whether the command that has a key takes its value."""
    command = next(name for name in ("run", "select", "intervene") if key in option_names(name))
    document = {key: value, **beside(key, value)}
    Path("c.yaml").write_text(json.dumps(document), encoding="utf-8")
    model = [] if key == "model" and value is not None else ["-m", "m"]
    result = call(command, *model, "-q", "-c", "c.yaml")
    assert result.exit_code == 0 or result.stderr.startswith("Error: "), (document, result.output)
    return result.exit_code == 0


def option_names(command: str) -> set[str]:
    return {str(option.name).replace("_", "-") for option in main.commands[command].params}


def values_of(key: str) -> list[Any]:
    found = CONFIG["properties"][key]
    choices = [value for way in found["anyOf"] for value in way.get("enum", ())]
    text = choices[0] if choices else TEXT.get(key, "file")
    # What else a text says is not the schema's business.
    takes_texts = any(way.get("type") == "string" and "pattern" not in way for way in found["anyOf"])
    return [*VALUES, *(() if takes_texts else WRONG), *choices, text, [text]]


@pytest.mark.parametrize("key", [name.replace("_", "-") for name in TYPES])
def test_schema_and_command_agree_on_every_type_of_every_key(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right and wrong values alike; that each key has both is held too."""

    def run(config: RunConfig) -> Any:
        from tapioca_export import steps

        steps.check(config, searches=True)
        return reports.report()

    monkeypatch.setattr(tapioca_export, "run", run)
    for name in ("compare", "intervene", "select"):
        monkeypatch.setattr(tapioca_export, name, lambda *given: reports.report())
    monkeypatch.chdir(tmp_path)
    for name in ("file", "other"):
        Path(name).touch()
    checker = jsonschema.Draft202012Validator(CONFIG)
    found = {
        json.dumps(value): (checker.is_valid({key: value}), taken(key, value)) for value in values_of(key)
    }
    assert {value: pair for value, pair in found.items() if pair[0] != pair[1]} == {}
    assert {pair[0] for pair in found.values()} == {True, False}


def test_a_key_with_underscores_is_the_same_key(received: list[RunConfig]) -> None:
    for key in ("max_drop_layers", "max-drop_layers", "max-drop-layers"):
        assert is_valid({key: 3}, "config")
        assert not is_valid({key: "three"}, "config")
        assert run_with(key, 3) == 0
        assert run_with(key, "three") == 2
    assert not is_valid({"max.drop.layers": 3}, "config")
    assert {config.max_drop_layers for config in received} == {3}


@pytest.mark.parametrize("text", ["5e-2", "5E-2", "+5e-2", ".5e-1", "5.e-2", "0.05"])
def test_a_number_with_an_exponent_is_one_in_yaml_as_well(text: str, received: list[RunConfig]) -> None:
    Path("c.yaml").write_text(f"epsilon: {text}\n", encoding="utf-8")
    assert is_valid(_parse_config(Path("c.yaml")), "config")
    assert call("run", "-m", "m", "-q", "-c", "c.yaml").exit_code == 0
    assert received[0].epsilon == 0.05


# --- init -----------------------------------------------------------------------------------


@pytest.fixture
def given(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Model and samples on the command line, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("id", "target")):
        write_jsonl(tmp_path / f"{name}.jsonl", text_records(64, seed))
    return ["-m", tiny("bert"), "--id", "id.jsonl", "--target", "target.jsonl"]


def test_run_takes_what_init_writes_as_it_is(
    given: list[object], received: list[RunConfig], tmp_path: Path
) -> None:
    extra = ["--epsilon", "0.5", "--columns", "text=text", "--batch-size", "3", "--drop-leaks"]
    assert call("init", *given, *extra).exit_code == 0
    validate(_parse_config(Path("tapioca.toml")), "config")
    assert call("run", "-c", "tapioca.toml", "-q").exit_code == 0
    assert call("run", *given, *extra, "--task", "text-classification", "-q").exit_code == 0
    assert received[0] == received[1]
    assert received[0].task == "text-classification"


def test_of_rows_without_labels_init_sets_what_needs_none(given: list[object], tmp_path: Path) -> None:
    for seed, name in enumerate(("id", "target")):
        write_jsonl(tmp_path / f"{name}.jsonl", text_records(64, seed, labelled=False))
    assert call("init", *given, "bare.toml").exit_code == 0
    text = (tmp_path / "bare.toml").read_text(encoding="utf-8")
    assert '\ncriterion = "tapioca"\n' in text
    assert "# The target rows have no labels" in text
    assert call("select", "-c", "bare.toml", "-q").exit_code == 0
    assert call("init", *given, "asked.toml", "--criterion", "random").exit_code == 0
    assert 'criterion = "random"' in (tmp_path / "asked.toml").read_text(encoding="utf-8")


def test_the_configuration_in_a_report_is_what_run_takes(
    given: list[object], received: list[RunConfig], tmp_path: Path
) -> None:
    """As the report says, in JSON, which is YAML."""
    asked = [
        "--epsilon",
        "0.5",
        "--format",
        "pt2",
        "--columns",
        "text=text",
        "--drop-leaks",
        "--batch-size",
        "3",
    ]
    assert call("run", *given, *asked, "-q").exit_code == 0
    record = make_run(received[0], tmp_path, {}, {}, {})
    (tmp_path / "settings.yaml").write_text(json_text(record.config), encoding="utf-8")
    assert call("run", "-c", "settings.yaml", "-q").exit_code == 0
    assert received[0] == received[1]


def test_a_config_file_of_init_drives_a_real_search(given: list[object]) -> None:
    assert call("init", *given, "mine.toml").exit_code == 0
    result = call("select", "-c", "mine.toml", "--max-drop-layers", "1", "--epsilon", "1", "-q")
    assert result.exit_code == 0, result.output
    assert Path("tapioca-run/selection.json").is_file()


def test_init_says_what_it_looked_at_and_explains_every_key(given: list[object]) -> None:
    result = call("init", *given)
    assert result.stdout.startswith("tapioca.toml: ")
    text = Path("tapioca.toml").read_text()
    assert "bert, text-classification, 4 layers, metric accuracy." in text
    chosen, reported = map(
        int, re.search(r"# target samples: (\d+) rows choose layers, (\d+) are", text).groups()
    )
    assert chosen + reported == 64
    for item in fields(RunConfig):
        assert (f"# {item.metadata['help']}\n" in text) == (item.name != "overwrite")


def test_a_key_behind_its_mark_has_the_default(given: list[object], received: list[RunConfig]) -> None:
    assert call("init", *given).exit_code == 0
    lines = Path("tapioca.toml").read_text().splitlines()
    bare = [line[1:] for line in lines if line[:1] == "#" and line[1:2].isalpha() and not line.endswith(" =")]
    assert len(bare) > 30
    Path("all.toml").write_text("\n".join([*(line for line in lines if line[:1] != "#"), *bare]))
    assert call("run", "-c", "all.toml", "-q").exit_code == 0
    assert call("run", "-c", "tapioca.toml", "-q").exit_code == 0
    assert received[0] == received[1]


@pytest.mark.parametrize("name", ['quo"te', "back\\slash", "a=b", "\x7f", "tab\t", "ünï", "# x", "'", "]"])
def test_hostile_names_come_back_as_they_went(
    name: str, given: list[object], received: list[RunConfig], tmp_path: Path
) -> None:
    shutil.copy("id.jsonl", f"{name}.jsonl")
    assert call("init", *given[:2], "--id", f"{name}.jsonl", *given[4:]).exit_code == 0
    assert call("run", "-c", "tapioca.toml", "-q").exit_code == 0
    assert received[0].id == Path(f"{name}.jsonl")


def test_several_domains_are_a_table(given: list[object], received: list[RunConfig]) -> None:
    write_jsonl(Path("other.jsonl"), text_records(64, 7))
    targets = ["--target", "a.b=target.jsonl", "--target", "c=other.jsonl"]
    assert call("init", *given[:4], *targets, "--objective", "worst").exit_code == 0
    assert call("run", "-c", "tapioca.toml", "-q").exit_code == 0
    assert received[0].target == {"a.b": Path("target.jsonl"), "c": Path("other.jsonl")}
    assert received[0].objective == "worst"


def test_a_file_that_is_there_is_not_replaced_unasked(given: list[object]) -> None:
    Path("tapioca.toml").write_text("precious")
    result = call("init", *given)
    assert result.exit_code == 1
    assert "tapioca.toml is there already" in result.stderr
    assert Path("tapioca.toml").read_text() == "precious"
    assert call("init", *given, "--overwrite").exit_code == 0
    assert "overwrite" not in Path("tapioca.toml").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--id", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--columns", "text=review"], "review"),
        (["--criterion", "tail"], "Unknown criterion 'tail'"),
    ],
)
def test_what_run_would_refuse_is_refused_and_nothing_written(
    given: list[object], change: list[str], said: str
) -> None:
    result = call("init", *given, *change)
    assert result.exit_code == 1
    assert said in result.stderr
    assert not Path("tapioca.toml").exists()


def test_samples_are_needed(given: list[object]) -> None:
    with pytest.raises(ConfigError, match="No target samples"):
        tapioca_export.init(RunConfig(model=str(given[1]), id=Path("id.jsonl")))
