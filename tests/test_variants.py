"""Several depths of one model over one weight file: each lacks its layers, and no weight stands twice."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from conftest import NUM_LAYERS, make_decoder, make_tokenizer, write_jsonl
from scipy.special import softmax
from test_text2text import network_of, save, write_rows

from tapioca_export import steps
from tapioca_export.artifacts import Damping, Export, Selection, Step, read, sha256, write
from tapioca_export.cli import main
from tapioca_export.models import drop_layers, load_model

TRAJECTORY = (2, 0, 3)


def cli(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def selection(path: Path, **changes: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    fields = {
        "model": "bert", "task": "text-classification", "criterion": "tale", "num_layers": NUM_LAYERS,
        "drop": (2,), "stop_reason": "",
        "steps": tuple(Step(layer, 0.0, place, 0.0) for place, layer in enumerate(TRAJECTORY)),
    }  # fmt: skip
    write(path, Selection(**{**fields, **changes}))  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def exported(
    tiny: Callable[[str], Path],
    sample_files: Callable[[str], dict[str, Path]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return the variants of a BERT, without the layers of `DROPS`."""
    folder = tmp_path_factory.mktemp("variants")
    airline = selection(folder / "selection-airline.json")
    bank = selection(folder / "bank" / "selection.json", drop=(1, 3), steps=())
    cli(
        "export", "-m", tiny("bert"), "--id", sample_files("bert")["id"], "-o", folder / "out",
        "--variants", f"{airline},{airline}@2,{bank}",
    )  # fmt: skip
    return folder / "out"


DROPS = {"original": (), "airline": (2,), "airline-2": (0, 2), "bank": (1, 3)}


@pytest.mark.slow
def test_each_variant_is_the_model_without_its_layers(exported: Path, tiny: Callable[[str], Path]) -> None:
    assert {folder.name for folder in exported.iterdir()} == set(DROPS)
    model = load_model(tiny("bert"))
    inputs = model.task.examples(model.processor)[0]
    for name, drop in DROPS.items():
        session = onnxruntime.InferenceSession(exported / name / "model.onnx")
        feed = {value.name: inputs[value.name] for value in session.get_inputs()}
        want = drop_layers(model, drop).logits(inputs)
        np.testing.assert_allclose(session.run(["logits"], feed)[0], want, atol=1e-4)
        record = read(exported / name / "export.json", Export)
        assert record.drop == drop
        assert record.reference == ("PyTorch with the dropped layers skipped" if drop else "PyTorch")
        assert record.max_abs_difference is not None
        assert record.max_abs_difference <= record.tolerance
        assert record.files == {
            file: sha256(exported / name / file) for file in ("model.onnx", "model.onnx_data")
        }
        assert record.sha256 == record.files["model.onnx"]
        config = json.loads((exported / name / "config.json").read_text())
        assert config["num_hidden_layers"] == NUM_LAYERS - len(drop)
        if drop:
            chosen = read(exported / name / "selection.json", Selection)
            assert chosen.drop == drop
            assert chosen.selected_metric == (1 if name == "airline-2" else None)


@pytest.mark.slow
def test_variants_are_verified_like_any_folder(exported: Path) -> None:
    said = cli("verify", exported)
    count = sum(path.is_file() for path in exported.rglob("*"))
    assert f"All {count} files are what was written." in said
    assert "4 of 4 proofs made again hold." in said


@pytest.mark.slow
def test_no_weight_stands_twice(exported: Path) -> None:
    weights = [exported / name / "model.onnx_data" for name in DROPS]
    assert len({file.stat().st_ino for file in weights}) == 1
    assert weights[0].stat().st_nlink == len(DROPS)
    kept = sum(weight.numel() for weight in load_parameters(exported))
    assert weights[0].stat().st_size >= 4 * kept * 0.9
    for name in DROPS:  # what is left in a graph is small
        assert all(value < 4096 for value in inline_bytes(exported / name / "model.onnx"))


def load_parameters(exported: Path) -> list[object]:
    model = load_model(read(exported / "original" / "export.json", Export).model)
    return [weight for name, weight in model.network.named_parameters() if weight.dim() > 1]


def inline_bytes(file: Path) -> list[int]:
    import onnx

    return [len(w.raw_data) for w in onnx.load(file, load_external_data=False).graph.initializer]


@pytest.mark.slow
def test_rows_are_routed_to_the_variant_of_their_domain(
    exported: Path, tiny: Callable[[str], Path], run_example: Callable[..., list[str]]
) -> None:
    model = load_model(tiny("bert"))
    texts = [f"w{n} w{2 * n} w{n + 7}" for n in range(12)]
    said = {}
    for name, drop in (("airline", (2,)), ("bank", (1, 3)), ("unknown", ())):
        network = drop_layers(model, drop)
        logits = [network.logits(model.processor.tokenizer(text, return_tensors="np")) for text in texts]
        chances = [softmax(row[0]) for row in logits]
        said[name] = [f"{network.network.config.id2label[c.argmax()]}\t{c.max():.4f}" for c in chances]
    lines = [f"{name}\t{text}" for name in said for text in texts]
    found = run_example("route.py", exported, stdin="\n".join(lines) + "\n")
    assert found == [*said["airline"], *said["bank"], *said["unknown"]]
    assert said["airline"] != said["unknown"]


@pytest.fixture
def run_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Return a function that runs an example as a script, and returns the lines it prints."""
    import io
    import runpy

    def run(name: str, *arguments: object, stdin: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        runpy.run_path(str(Path(__file__).parent.parent / "examples" / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.slow
def test_a_decoders_variants_have_a_cache_of_their_depth(tmp_path: Path) -> None:
    make_decoder("llama").save_pretrained(tmp_path / "model")
    make_tokenizer("llama").save_pretrained(tmp_path / "model")
    rows = write_jsonl(
        tmp_path / "id.jsonl", [{"prompt": f"w{n} w{n + 1}", "answer": f"w{n}"} for n in range(30)]
    )
    chosen = selection(tmp_path / "a.json", drop=(0, 2), task="text-generation")
    cli("export", "-m", tmp_path / "model", "-t", "text-generation", "--id", rows, "-o", tmp_path / "out",
        "--variants", chosen)  # fmt: skip
    record = read(tmp_path / "out" / "a" / "export.json", Export)
    assert sorted(record.cache) == [
        f"past_key_values.{n}.{kind}" for n in (0, 1) for kind in ("key", "value")
    ]


@pytest.mark.slow
def test_variants_in_half_precision_are_held_against_half_precision(
    tiny: Callable[[str], Path], sample_files: Callable[[str], dict[str, Path]], tmp_path: Path
) -> None:
    chosen = selection(tmp_path / "a.json")
    cli("export", "-m", tiny("bert"), "--id", sample_files("bert")["id"], "-o", tmp_path / "out",
        "--dtype", "fp16", "--variants", chosen)  # fmt: skip
    record = read(tmp_path / "out" / "a" / "export.json", Export)
    assert record.dtype == "fp16"
    assert record.pytorch_difference > 0
    assert "2 of 2 proofs made again hold." in cli("verify", tmp_path / "out")


@pytest.mark.slow
def test_of_an_encoder_decoder_no_variants_are_made(tmp_path: Path) -> None:
    save(network_of("t5"), tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", "id", 8)
    chosen = selection(tmp_path / "a.json", task="text2text-generation")
    said = cli("export", "-m", tmp_path / "model", "--id", rows, "-o", tmp_path / "out", "--variants", chosen,
               code=1)  # fmt: skip
    assert "exported as several graphs" in said


def test_variants_that_cannot_be_made_are_refused_before_anything_is_exported(
    tiny: Callable[[str], Path],
    sample_files: Callable[[str], dict[str, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(steps, "export_each")
    good = selection(tmp_path / "good.json")
    damped = selection(tmp_path / "damped.json", damp=(Damping(1, 0.5),))
    deeper = selection(tmp_path / "deeper.json", num_layers=9)
    part = selection(tmp_path / "part.json", drop=("1.attention",))
    scaled = selection(tmp_path / "scaled.json", steps=(Step(1, 0.0, 0.0, 0.0, scale=0.5),))
    again = selection(tmp_path / "again" / "good.json")
    whole = selection(tmp_path / "original.json")
    metric = selection(tmp_path / "metric.json", metric="f1")
    nameless, outside = (selection(tmp_path / f"selection-{name}.json") for name in ("", ".."))
    common = ("export", "-m", tiny("bert"), "--id", sample_files("bert")["id"], "-o", tmp_path / "out")
    for variants, reason in {
        f"{good}@4": "dropped 3 layers, not 4",
        f"{damped}": "damps layers",
        f"{scaled}@1": "damps layers",
        f"{part}": "drops parts of them",
        f"{deeper}": "is for 9 layers",
        f"{good},{again}": "Two variants are called 'good'",
        f"{whole}": "Two variants are called 'original'",
        f"{tmp_path / 'none.json'}": "Cannot read",
        f"{good},{metric}": "different metrics or prompts",
        f"{nameless}": "gives a variant no name",
        f"{outside}": "gives a variant no name",
        "": "Cannot read",
    }.items():
        assert reason in cli(*common, "--variants", variants, code=1)
    assert "Variants are ONNX" in cli(*common, "--variants", good, "--format", "torchscript", code=1)
    assert "none were given" in cli(*common[:3], *common[5:], "--variants", good, code=1)
    assert not (tmp_path / "out").exists()
