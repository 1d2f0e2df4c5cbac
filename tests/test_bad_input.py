"""Whatever a user gets wrong is answered by one line and a hint, and leaves nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import NUM_LAYERS, complaint, save_model, text_records, write_jsonl
from reports import report, selection
from safetensors.torch import load_file, save_file

from tapioca_export import artifacts
from tapioca_export.cli import main
from tapioca_export.errors import first_line

OUT = "out"
Edit = Callable[[Path], object]


@pytest.fixture
def model(tmp_path: Path, tiny: Callable[[str], Path]) -> Path:
    """A copy of a tiny checkpoint, to be spoilt."""
    return Path(shutil.copytree(tiny("bert"), tmp_path / "model"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Good ID and target samples, to be spoilt."""
    return {
        name: write_jsonl(tmp_path / f"{name}.jsonl", text_records(32, seed))
        for seed, name in enumerate(("id", "target"))
    }


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Run the command line in an empty folder, offline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


def refused(result: Result, *words: str, code: int = 1) -> None:
    """Check that the command ended in one line that names the culprit, and a hint."""
    lines = complaint(result)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    assert lines[0].startswith("Error: ")
    assert len(lines) == 2, result.stderr
    assert lines[1].startswith("Hint: "), "nothing says what to do"
    for word in words:
        assert word in result.stderr
    assert result.stdout == ""
    assert not Path(OUT).exists()
    assert not Path(f".{OUT}.tapioca-partial").exists()


def select(model: Path | str, files: dict[str, Path], *more: object) -> list[object]:
    """The arguments of a search."""
    return ["select", "-m", model, "--id", files["id"], "--target", files["target"], "-o", OUT, *more]


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


def set_line(path: Path, number: int, line: str) -> None:
    """Replace one line, counted from 1."""
    lines = lines_of(path)
    lines[number - 1] = line + "\n"
    path.write_text("".join(lines), encoding="utf-8")


def set_key(path: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}))


def relabel(path: Path, labels: Callable[[int], object]) -> None:
    rows = [json.loads(line) for line in lines_of(path)]
    write_jsonl(path, [{**row, "label": labels(number)} for number, row in enumerate(rows)])


# --- sample files ---------------------------------------------------------------------------

SPOILT_ROWS: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "missing": (Path.unlink, ("id.jsonl", "does not exist")),
    "empty": (lambda p: p.write_text(""), ("id.jsonl", "no rows")),
    "blank": (lambda p: p.write_text("\n\n"), ("id.jsonl", "no rows")),
    "malformed": (lambda p: set_line(p, 3, '{"text": "w1", '), ("id.jsonl, line 3", "not valid JSON")),
    "huge number": (lambda p: set_line(p, 3, "9" * 5000), ("id.jsonl, line 3", "not valid JSON")),
    "deep": (lambda p: set_line(p, 3, "[" * 100_000), ("id.jsonl, line 3", "not valid JSON")),
    "array": (lambda p: set_line(p, 3, "[1, 2]"), ("id.jsonl, line 3", "not a JSON object")),
    "not UTF-8": (lambda p: p.write_bytes(b'{"text": "caf\xe9"}\n'), ("id.jsonl, line 1", "utf-8")),
    "UTF-16": (lambda p: p.write_text("{}", encoding="utf-16"), ("id.jsonl, line 1", "utf-8")),
    "no text": (lambda p: set_line(p, 3, '{"review": "w1", "label": 0}'), ("line 3", "review, label")),
    "empty text": (lambda p: set_line(p, 3, '{"text": " ", "label": 0}'), ("line 3", "text is empty")),
    "null text": (lambda p: set_line(p, 3, '{"text": null, "label": 0}'), ("line 3", "text is empty")),
    "number": (lambda p: set_line(p, 3, '{"text": 5, "label": 0}'), ("line 3", "int, not a text")),
    "surrogate": (lambda p: set_line(p, 3, r'{"text": "\ud800", "label": 0}'), ("line 3", "surrogate")),
    "pair": (
        lambda p: set_line(p, 3, '{"text": "w1", "text_pair": "w2", "label": 0}'),
        ("line 3", "text and text_pair", "line 1"),
    ),
    "label": (lambda p: set_line(p, 3, '{"text": "w1", "label": "bad"}'), ("line 3", "'bad'", "0=negative")),
    "label id": (lambda p: set_line(p, 3, '{"text": "w1", "label": 3}'), ("line 3", "label 3 is unknown")),
    "label kind": (lambda p: set_line(p, 3, '{"text": "w1", "label": true}'), ("line 3", "label True")),
    "label list": (lambda p: set_line(p, 3, '{"text": "w1", "label": [0]}'), ("line 3", "label [0]")),
    "half labelled": (lambda p: set_line(p, 3, '{"text": "w1"}'), ("line 3", "no label")),
    "one class": (lambda p: relabel(p, lambda n: 1), ("id.jsonl", "the same label")),
    "too few": (lambda p: p.write_text("".join(lines_of(p)[:10])), ("id.jsonl", "at least 8")),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT_ROWS)
def test_spoilt_samples_are_refused(case: str, model: Path, files: dict[str, Path], call: Any) -> None:
    spoil, words = SPOILT_ROWS[case]
    spoil(files["id"])
    refused(call(*select(model, files)), *words)


OTHER_FILES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "samples.txt": (b"text", ("unknown ending '.txt'", ".parquet")),
    "nul.csv": (b"text,label\nw1,0\nw\x002,1\n", ("nul.csv, line 3", "NUL")),
    "unquoted.csv": (b"text,label\nw1, w2,0\n", ("unquoted.csv, line 2", "3 fields", "2")),
    "all unquoted.csv": (b"text,label\nw1, w2,0\nw1, w3,1\n", ("line 2", "3 fields")),
    "short.csv": (b"text,label\nw1\n", ("short.csv, line 2", "1 fields")),
    "quote.csv": (b'text,label\n"w1,0\nw2,1\n', ("quote.csv, line 3", "malformed")),
    "twice.csv": (b"text,label,label\nw1,0,1\n", ("two columns of one name", "label")),
    "latin.csv": (b"text,label\ncaf\xe9,0\n", ("latin.csv is not UTF-8",)),
    "header.csv": (b"text,label\n", ("header.csv holds no rows",)),
    "semicolon.csv": (b"text;label\nw1;0\n", ("no column 'text'", "text;label")),
    "pipe.tsv": (b"review\tlabel\nw1\t0\n", ("no column 'text'", "review, label")),
    "not.parquet": (b"PAR1 no, it is not", ("not.parquet", "Parquet")),
    "empty.parquet": (b"", ("empty.parquet", "Parquet")),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_files_that_are_not_what_they_say_are_refused(
    name: str, model: Path, files: dict[str, Path], tmp_path: Path, call: Any
) -> None:
    content, words = OTHER_FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    refused(call(*select(model, {**files, "id": path})), *words)


def test_a_folder_that_is_no_dataset_is_refused(model: Path, files: dict[str, Path], call: Any) -> None:
    refused(call(*select(model, {**files, "id": model})), "model", "not a folder saved by datasets")


def test_a_folder_of_several_splits_is_refused(
    model: Path, files: dict[str, Path], tmp_path: Path, call: Any
) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(text_records(9, 0))
    DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "splits")
    result = call(*select(model, {**files, "id": tmp_path / "splits"}))
    refused(result, "several splits: train, test", "splits/train")


def test_a_path_too_long_to_exist_is_refused(model: Path, files: dict[str, Path], call: Any) -> None:
    refused(call(*select(model, {**files, "id": Path("x" * 5000)})), "does not exist")


@pytest.mark.parametrize("missing", ["--id", "--target"])
def test_samples_not_given_are_asked_for(
    missing: str, model: Path, files: dict[str, Path], call: Any
) -> None:
    arguments = select(model, files)
    place = arguments.index(missing)
    refused(call(*arguments[:place], *arguments[place + 2 :]), f"Add {missing}")


# --- rows in two roles ----------------------------------------------------------------------


def test_a_row_in_id_and_target_is_refused(model: Path, files: dict[str, Path], call: Any) -> None:
    set_line(files["target"], 3, lines_of(files["id"])[4].strip())
    refused(call("run", *select(model, files)[1:]), "two roles", "line 5", "line 3", "--drop-leaks")


@pytest.mark.parametrize("name", ["id", "target"])
def test_a_select_row_in_the_report_file_is_refused(
    name: str, model: Path, files: dict[str, Path], tmp_path: Path, call: Any
) -> None:
    leaking = [
        *text_records(32, 7),
        json.loads(
            lines_of(files[name])[4]
            .upper()
            .replace("TEXT", "text")
            .replace("LABEL", "label")
            .replace("NEGATIVE", "negative")
            .replace("NEUTRAL", "neutral")
            .replace("POSITIVE", "positive")
        ),
    ]
    path = write_jsonl(tmp_path / "report.jsonl", leaking)
    result = call("run", *select(model, files)[1:], f"--{name}-report", path)
    refused(result, "two roles", f"{name}-select", f"{name}-report", "line 33")


def test_the_same_file_twice_is_refused_where_rows_are_reported(
    model: Path, files: dict[str, Path], call: Any
) -> None:
    refused(call("run", *select(model, {"id": files["id"], "target": files["id"]})[1:]), "two roles")


# --- checkpoints ----------------------------------------------------------------------------


def set_nan(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["classifier.weight"] = torch.full_like(weights["classifier.weight"], torch.nan)
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def pickle_weights(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def remove_tokenizer(model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()


SPOILT_MODELS: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "missing": (shutil.rmtree, ("does not exist",)),
    "no config": (lambda m: (m / "config.json").unlink(), ("no config.json",)),
    "config is not JSON": (lambda m: (m / "config.json").write_text("{"), ("config",)),
    "config is a list": (lambda m: (m / "config.json").write_text("[]"), ("config",)),
    "unknown type": (lambda m: set_key(m / "config.json", model_type="nonesuch"), ("nonesuch",)),
    "custom code": (
        lambda m: set_key(m / "config.json", auto_map={"AutoConfig": "evil.Config"}),
        ("evil.Config", "--trust-remote-code"),
    ),
    "adapter": (
        lambda m: (m / "adapter_config.json").write_text("{}"),
        ("holds an adapter", "merge_and_unload"),
    ),
    "quantized": (
        lambda m: set_key(m / "config.json", quantization_config={"quant_method": "gptq"}),
        ("quantized (gptq)", "Start from the checkpoint that is not"),
    ),
    "pickled": (pickle_weights, ("pickled weights", "pytorch_model.bin", "safetensors")),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), ("no *.safetensors",)),
    "weights are not weights": (
        lambda m: (m / "model.safetensors").write_bytes(b"x" * 99),
        ("no whole safetensors file",),
    ),
    "weights of another model": (
        lambda m: save_file({"a": torch.ones(1)}, m / "model.safetensors", {"format": "pt"}),
        ("no weights for",),
    ),
    "no tokenizer": (remove_tokenizer, ("No tokenizer", "no vocabulary")),
    "tokenizer is not JSON": (lambda m: (m / "tokenizer.json").write_text("{"), ("No tokenizer",)),
    "tokenizer config is a list": (
        lambda m: (m / "tokenizer_config.json").write_text("[]"),
        ("No tokenizer",),
    ),
    "tokenizer of another model": (
        lambda m: set_key(m / "config.json", vocab_size=50),
        ("token ids up to 95", "50"),
    ),
    "no padding": (lambda m: set_key(m / "config.json", pad_token_id=None), ("no padding token",)),
    "regression": (
        lambda m: set_key(m / "config.json", problem_type="regression"),
        ("line 1: label", "is not a list of 3 numbers"),
    ),
    "NaN": (set_nan, ("not finite",)),
}


@pytest.mark.parametrize("case", SPOILT_MODELS)
@pytest.mark.filterwarnings("ignore")  # transformers' own, of the spoilt files
def test_spoilt_checkpoints_are_refused(case: str, model: Path, files: dict[str, Path], call: Any) -> None:
    spoil, words = SPOILT_MODELS[case]
    spoil(model)
    refused(call(*select(model, files)), *words)


@pytest.mark.parametrize("command", ["prune", "export"])
def test_a_checkpoint_with_nan_is_neither_pruned_nor_exported(
    command: str, model: Path, files: dict[str, Path], call: Any
) -> None:
    set_nan(model)
    more = ["--drop", "1"] if command == "prune" else ["--format", "torchscript"]
    result = call(command, "-m", model, "--id", files["id"], "-o", OUT, *more)
    assert result.exit_code == 1
    assert complaint(result)[0].startswith("Error: ")
    assert not list(Path(OUT).rglob("*.safetensors"))


def test_a_name_on_the_hub_is_refused_offline(files: dict[str, Path], call: Any) -> None:
    result = call(*select("someone/some-model", files, "--local-files-only"))
    refused(result, "someone/some-model")


def test_a_model_with_one_layer_in_each_stack_is_refused(
    files: dict[str, Path], tmp_path: Path, call: Any
) -> None:
    from transformers import T5Config, T5ForSequenceClassification

    config = T5Config(
        vocab_size=96, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
        decoder_start_token_id=0, num_labels=3, id2label={0: "negative", 1: "neutral", 2: "positive"},
    )  # fmt: skip
    folder = save_model(tmp_path / "t5", "bert")
    T5ForSequenceClassification(config).save_pretrained(folder)
    refused(call(*select(folder, files)), "one layer in each stack, and one must stay")


# --- options --------------------------------------------------------------------------------

BAD_OPTIONS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("--criterion", "talle"): ("criterion 'talle'", "Did you mean 'tale'?"),
    ("--task", "text-clasification"): ("task 'text-clasification'", "Did you mean 'text-classification'?"),
    ("--task", "polynomial-regression"): ("bert does not do polynomial-regression",),
    ("--columns", "txt=review"): ("no column 'txt'", "text, text_pair, label"),
    ("--columns", "text=review"): ("no column 'review'", "text, label"),
    ("--pick", "frist"): ("'frist'", "best, bsba, final"),
    ("--epsilon", "-1"): ("--epsilon",),
    ("--epsilon", "nan"): ("--epsilon",),
    ("--max-drop-layers", "-1"): ("--max-drop-layers",),
    ("--criterion", "fixed", "--drop", "1,2", "--max-drop-layers", "1"): ("--drop names 2",),
    ("--protect-first", "-1"): ("--protect-first",),
    ("--protect-first", "4"): ("No layer", "--protect-first"),
    ("--max-length", "1"): ("--max-length 1",),
    ("--max-length", "65"): ("--max-length 65", "64"),
    ("--eval-batch-size", "0"): ("--eval-batch-size 0",),
    ("--num-threads", "0"): ("--num-threads 0",),
    ("--limit", "0"): ("--limit 0",),
    ("--limit", "7"): ("at least 8",),
    ("--seed", "-1"): ("--seed",),
    ("--tie-break", "coin"): ("--tie-break 'coin'",),
    ("--select-on", "both"): ("--select-on 'both'",),
    ("--device", "abacus"): ("--device 'abacus'",),
    ("--drop", "1"): ("--criterion fixed",),
    ("--criterion", "fixed"): ("--drop",),
    ("--criterion", "fixed", "--drop", "9"): ("Layer 9 does not exist", "0 to 3"),
}  # fmt: skip


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=" ".join)
def test_bad_options_are_refused(
    options: tuple[str, ...], model: Path, files: dict[str, Path], call: Any
) -> None:
    refused(call(*select(model, files, *options)), *BAD_OPTIONS[options])


BAD_USAGE: dict[tuple[str, ...], tuple[str, ...]] = {
    ("select",): ("--model",),
    ("select", "-m", "x", "--epsilom", "1"): ("--epsilom", "--epsilon"),
    ("select", "-m", "x", "--epsilon", "much"): ("'much'",),
    ("select", "-m", "x", "--columns", "text"): ("--columns", "text=review"),
    ("select", "-m", "x", "--columns", "text=a,text=b"): ("--columns", "once"),
    ("select", "-m", "x", "--drop", "one"): ("--drop", "3,7"),
    ("benchmark", "x"): ("PRUNED",),
    ("slect",): ("slect",),
}


@pytest.mark.parametrize("arguments", BAD_USAGE, ids=" ".join)
def test_wrong_usage_is_refused(arguments: tuple[str, ...], call: Any) -> None:
    refused(call(*arguments), *BAD_USAGE[arguments], "--help", code=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--format", "onx"), ("format 'onx'", "Did you mean 'onnx'?")),
        (("--provider", "cuda"), ("CUDAExecutionProvider", "onnxruntime-gpu")),
        (("--provider", "abacus"), ("Provider abacus",)),
        (("--atol", "0"), ("--atol",)),
        (("--atol", "inf"), ("--atol",)),
        (("--batch-size", "0"), ("--batch-size 0",)),
        (("--sequence-length", "0"), ("--sequence-length 0",)),
        (("--iterations", "0"), ("--iterations 0",)),
        (("--warmup", "-1"), ("--warmup -1",)),
    ],
)
def test_what_comes_after_the_search_is_refused_before_weights_are_read(
    options: tuple[str, ...], words: tuple[str, ...], model: Path, files: dict[str, Path], call: Any
) -> None:
    (model / "model.safetensors").unlink()
    refused(call("run", *select(model, files)[1:], *options), *words)


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        ("4", ("Layer 4 does not exist", "0 to 3")),
        ("-1", ("Layer -1 does not exist",)),
        ("1,1", ("Layer 1 is named twice",)),
        (",".join(map(str, range(NUM_LAYERS))), ("All 4 layers",)),
    ],
)
@pytest.mark.parametrize("command", ["prune", "profile"])
def test_layers_that_cannot_be_dropped_are_refused(
    command: str, drop: str, words: tuple[str, ...], model: Path, files: dict[str, Path], call: Any
) -> None:
    refused(call(command, *select(model, files)[1:], "--drop", drop), *words)


# --- configuration files --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.toml", "epsilon = ", ("c.toml is malformed", "Invalid value")),
        ("c.yaml", "a: [", ("c.yaml is malformed",)),
        ("c.yaml", "just words", ("c.yaml is not a table",)),
        ("c.toml", "epsilom = 1", ("key in c.toml 'epsilom'", "Did you mean 'epsilon'?")),
        ("c.toml", "epsilon = [1]", ("c.toml: epsilon is a list",)),
        ("c.toml", "epsilon = {a = 1}", ("c.toml: epsilon is a table",)),
        ("c.toml", "id = {a = 1}", ("c.toml: id is a table",)),
        ("c.toml", "drop = [[1]]", ("c.toml: drop is a list",)),
        ("c.toml", 'criterion = "talle"', ("Did you mean 'tale'?",)),
        *(
            (name, text, ("has a table 'export', and settings stand in no table", "Move its keys to the top"))
            for name, text in (
                ("c.toml", "epsilon = 1\n[export]\nopset = 18"),
                ("c.toml", "[[export]]\nopset = 18"),
                ("c.toml", "export = {}"),
                ("c.toml", "[columns]\ntext = 'text'\n[export.onnx]\nopset = 18"),
                ("c.yaml", "export:\n  opset: 18"),
            )
        ),
        ("c.toml", "[export]\nopset = 18", ("tables: columns, weights, target, target-report.",)),
        ("c.toml", "export = 1", ("key in c.toml 'export'", "Known: ")),
        ("c.toml", f"[{'x' * 999}]", (f"table '{'x' * 100}...',",)),
        ("c.yaml", "json: true", ("key in c.yaml 'json'",)),
    ],
)
def test_bad_configuration_files_are_refused(
    name: str, text: str, words: tuple[str, ...], model: Path, files: dict[str, Path], call: Any
) -> None:
    Path(name).write_text(text)
    refused(call(*select(model, files, "--config", name)), *words)


@pytest.mark.parametrize("line", ['epsilon = "much"', "epsilon = 2020-01-01", "columns = 3"])
def test_bad_values_in_a_configuration_file_are_wrong_usage(
    line: str, model: Path, files: dict[str, Path], call: Any
) -> None:
    Path("c.toml").write_text(line)
    refused(call(*select(model, files, "--config", "c.toml")), line.split()[0], code=2)


def test_a_configuration_file_that_is_missing_is_refused(call: Any) -> None:
    refused(call("select", "--config", "none.toml"), "none.toml", "No such file")


# --- output ---------------------------------------------------------------------------------

OUTPUTS = ["prune", "profile", "select", "run", "export"]


def command_line(command: str, model: Path, files: dict[str, Path]) -> list[object]:
    more = ["--drop", "1"] if command == "prune" else []
    return [command, *select(model, files)[1:-2], *more]


@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_below_a_file_is_refused(
    command: str, model: Path, files: dict[str, Path], call: Any
) -> None:
    before = files["id"].read_bytes()
    refused(call(*command_line(command, model, files), "-o", files["id"] / "out"), "id.jsonl")
    assert files["id"].read_bytes() == before


def test_an_output_that_is_a_file_is_refused(model: Path, files: dict[str, Path], call: Any) -> None:
    refused(call(*command_line("prune", model, files), "-o", files["id"]), "is a file")


def test_an_output_where_nothing_can_be_written_is_refused(
    model: Path, files: dict[str, Path], call: Any
) -> None:
    refused(call(*command_line("prune", model, files), "-o", "/proc/tapioca/out"), "/proc")


@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_that_holds_something_is_refused(
    command: str, model: Path, files: dict[str, Path], call: Any
) -> None:
    Path("full").mkdir()
    Path("full/precious").write_text("mine")
    refused(call(*command_line(command, model, files), "-o", "full"), "full", "--overwrite")
    assert [path.name for path in Path("full").iterdir()] == ["precious"]


# --- what other commands read ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ("selection.json",)),
        ("[]", ("selection.json",)),
        ('{"kind": "profile"}', ("selection.json", "not a selection file")),
        ('{"drop": "all"}', ("selection.json", "not a selection file")),
    ],
)
def test_a_malformed_selection_is_refused(text: str, words: tuple[str, ...], model: Path, call: Any) -> None:
    Path("selection.json").write_text(text)
    refused(call("prune", "-m", model, "--selection", "selection.json", "-o", OUT), *words)


def test_a_selection_for_another_depth_is_refused(model: Path, call: Any) -> None:
    artifacts.write(Path("selection.json"), selection())
    result = call("prune", "-m", model, "--selection", "selection.json", "-o", OUT)
    refused(result, "12 layers", "bert-tiny", "has 4")


@pytest.mark.parametrize("command", ["prune", "intervene"])
def test_a_selection_for_other_weights_is_refused(
    command: str, model: Path, files: dict[str, Path], call: Any
) -> None:
    chosen = replace(selection(), num_layers=NUM_LAYERS, drop=(1,), fingerprint="0" * 64)
    artifacts.write(Path("selection.json"), chosen)
    rows = ("--id", files["id"], "--target", files["target"]) if command == "intervene" else ()
    result = call(command, "-m", model, "--selection", "selection.json", "-o", OUT, *rows)
    refused(result, "other weights (bert-tiny)", str(model), "--drop")


def test_a_selection_that_is_missing_is_refused(model: Path, call: Any) -> None:
    refused(call("prune", "-m", model, "--selection", "none.json", "-o", OUT), "none.json")


@pytest.mark.parametrize("more", [(), ("--drop", "1", "--selection", "selection.json")])
def test_prune_wants_layers_or_a_selection(more: tuple[str, ...], model: Path, call: Any) -> None:
    artifacts.write(Path("selection.json"), selection())
    refused(call("prune", "-m", model, "-o", OUT, *more), "either --drop or --selection")


def test_export_wants_samples_to_prove_parity_on(model: Path, call: Any) -> None:
    refused(call("export", "-m", model, "-o", OUT), "--id or --target")


@pytest.mark.parametrize("command", ["report", "check"])
@pytest.mark.parametrize("folder", ["none", "."])
def test_what_is_no_run_folder_is_refused(command: str, folder: str, call: Any) -> None:
    more = ["--min-speedup", "1"] if command == "check" else []
    refused(call(command, folder, *more), f"{folder} is not a run folder")


def test_check_without_thresholds_is_refused(call: Any) -> None:
    artifacts.write(Path("report.json"), report())
    refused(call("check", "."), "threshold")


def test_check_of_a_malformed_report_is_refused(call: Any) -> None:
    Path("report.json").write_text('{"kind": "report"}')
    refused(call("check", ".", "--min-speedup", "1"), "report.json is not a report file")


@pytest.mark.parametrize("missing", [0, 1])
def test_benchmark_of_a_missing_folder_is_refused(missing: int, files: dict[str, Path], call: Any) -> None:
    folders = ["there", "there"]
    Path("there").mkdir()
    folders[missing] = "none"
    samples = ["--id", files["id"], "--target", files["target"]]
    refused(call("benchmark", *folders, *samples, "-o", OUT), "none does not exist")


def test_benchmark_of_a_folder_without_an_export_is_refused(
    model: Path, files: dict[str, Path], call: Any
) -> None:
    samples = ["--id", files["id"], "--target", files["target"]]
    refused(call("benchmark", model, model, *samples, "-o", OUT), "export.json")


def test_colours_of_another_library_are_for_terminals_alone() -> None:
    error = ValueError("\x1b[96mThis is step 3/3\x1b[0m of exporting")
    assert first_line(error) == "This is step 3/3 of exporting"
