"""Files in half precision: what is in them, how near to float32 they are, and what is refused."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from conftest import text_records, write_jsonl
from media import save_media_model, write_media
from onnx import TensorProto, numpy_helper
from test_generation import TOKENS, make_encoder_decoder, make_model, make_rows, make_texts, prompts

from tapioca_export import RunConfig
from tapioca_export.artifacts import Benchmark, Export, read
from tapioca_export.benchmarking import RUNTIMES, BenchmarkSettings, default_settings, make_workloads
from tapioca_export.cli import main
from tapioca_export.errors import ConfigError, ExportError, ParityError
from tapioca_export.exporting import FORMATS, ExportSettings, Written, export_model, tracing
from tapioca_export.exporting.parity import Reference, prove_generation, prove_outputs
from tapioca_export.generation import Session, generate, step_logits
from tapioca_export.models import LoadedModel, cast, generated, load_model
from tapioca_export.samples import Samples, read_samples
from tapioca_export.tasks import Inputs

Exported = tuple[LoadedModel, Samples, Export, Path]
Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]
FP16 = ExportSettings(dtype="fp16")


def load_with_rows(folder: Path, file: Path) -> tuple[LoadedModel, Samples]:
    model = load_model(folder)
    return model, read_samples(file, model.task.rows({}, model.processor), role="parity")


def exported(model: LoadedModel, rows: Samples, folder: Path) -> Exported:
    return model, rows, export_model(model, rows, folder, FP16), folder


@pytest.fixture(scope="module")
def bert(tiny: Tiny, sample_files: Files, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model, rows = load_with_rows(tiny("bert"), sample_files("bert")["target"])
    return exported(model, rows, tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = make_model("llama")
    return exported(model, make_rows(model), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("vit")
    file = write_media(folder / "rows", "image", 18, 1, is_target=False)
    model, rows = load_with_rows(save_media_model(folder / "model", "vit"), file)
    return exported(model, rows, folder)


def written_of(export: Export) -> Written:
    return Written("", 18, export.inputs, export.outputs, tuple(export.files), export.cache)


def weights_of(path: Path) -> dict[str, int]:
    """Return ONNX's number types of what is large enough to be a weight."""
    graph = onnx.load(path).graph
    return {t.name: t.data_type for t in graph.initializer if np.prod(t.dims) > 64 and t.data_type < 17}


def types_of(folder: Path, name: str = "model.onnx") -> dict[str, str]:
    session = onnxruntime.InferenceSession(folder / name)
    return {value.name: value.type for value in (*session.get_inputs(), *session.get_outputs())}


def check_half(model: LoadedModel, export: Export, folder: Path, *kept: int) -> None:
    """Hold a file against what half precision is to mean; some weights may be kept in another."""
    assert read(folder / "export.json", Export) == export
    assert export.dtype == "fp16"
    assert 0 < export.max_abs_difference <= export.tolerance == 2 * export.pytorch_difference < 0.05
    assert export.label_agreement >= 0.9 <= export.token_agreement
    for name in export.files:
        floats = [kind for kind in weights_of(folder / name).values() if kind != TensorProto.INT64]
        assert floats
        assert set(floats) == {TensorProto.FLOAT16, *kept}
        assert "tensor(float)" not in types_of(folder, name).values()
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    assert {weight.dtype for weight in model.network.parameters()} == {torch.float32}  # left as it was


# --- what is in a file ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "llama", "vit"])
def test_a_file_in_half_precision_is_so_throughout_and_near_float32(
    kind: str, request: pytest.FixtureRequest
) -> None:
    model, _, export, folder = request.getfixturevalue(kind)
    check_half(model, export, folder)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [("vit", "pixel_values"), ("llama", "past_key_values.0.key")])
def test_inputs_that_are_no_whole_numbers_and_outputs_are_float16(
    kind: str, name: str, request: pytest.FixtureRequest
) -> None:
    types = types_of(request.getfixturevalue(kind)[3])
    assert types[name] == types["logits"] == "tensor(float16)"


@pytest.mark.slow
def test_a_file_in_half_precision_is_half_as_large(bert: Exported) -> None:
    model, _, export, _ = bert
    num_weights = sum(weight.numel() for weight in model.network.parameters())
    graph = onnx.load(bert[3] / "model.onnx").graph
    half = sum(len(t.raw_data) for t in graph.initializer if t.data_type == TensorProto.FLOAT16)
    assert 0.95 * 2 * num_weights <= half <= 2 * num_weights  # some embeddings are never read
    assert half < export.size_bytes == (bert[3] / "model.onnx").stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "t5", "bart"])
def test_models_that_generate_are_written_in_half_precision(family: str, tmp_path: Path) -> None:
    divided = family in ("t5", "bart")
    model = make_encoder_decoder(family) if divided else make_model(family)
    rows = make_texts(model) if divided else make_rows(model)
    export = export_model(model, rows, tmp_path, FP16)
    check_half(model, export, tmp_path, *([TensorProto.FLOAT] if family == "t5" else []))  # its `wo`
    assert (export.prompts_continued, export.tokens_generated) == (4, TOKENS)


# --- a model in another precision -----------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_cast_model_is_what_transformers_loads(family: str, dtype: str, tiny: Tiny) -> None:
    model = load_model(tiny(family))
    ours = cast(model, dtype).network
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    stock = type(ours).from_pretrained(tiny(family), dtype=kind)
    expected = {**dict(stock.named_parameters()), **dict(stock.named_buffers())}
    for name, tensor in (*ours.named_parameters(), *ours.named_buffers()):
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name
    assert not ours.training


def test_what_must_stay_in_float32_stays_there() -> None:
    frequencies = dict(cast(make_model("llama"), "fp16").network.named_buffers())["model.rotary_emb.inv_freq"]
    assert frequencies.dtype == torch.float32
    network = cast(make_encoder_decoder("t5"), "fp16").network
    kinds = {name.split(".")[-2]: weight.dtype for name, weight in network.named_parameters()}
    assert (kinds["wi"], kinds["wo"]) == (torch.float16, torch.float32)


# --- the proof ------------------------------------------------------------------------------


def test_in_float32_the_rules_are_what_they_were(bert: Exported) -> None:
    model = bert[0]
    reference = Reference(model, model)
    assert (reference.limit(0.0), reference.limit(9.0), reference.least_agreement) == (1e-4, 1e-4, 1.0)
    inputs = model.task.examples(model.processor)[0]
    assert reference.answers(inputs)[1] == 0.0


def test_what_pytorch_loses_in_half_precision_is_what_a_file_may_lose_twice(bert: Exported) -> None:
    model = bert[0]
    half = cast(model, "fp16")
    inputs = model.task.examples(model.processor)[0]
    expected, own = Reference(model, half, "fp16").answers(inputs)
    np.testing.assert_array_equal(expected, model.logits(inputs))
    assert own == np.abs(half.logits(inputs) - model.logits(inputs)).max() > 0
    assert Reference(model, half, "fp16").limit(own) == 2 * own > 1e-4
    assert Reference(model, half, "fp16").limit(1e-6) == 1e-4, "no less than in float32"
    assert Reference(model, half, "fp16", 0.5).limit(own) == 0.5


def spoilt(folder: Path, output: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> Path:
    """Write a file again with other weights."""
    model = onnx.load(folder / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor)
            changed = change(tensor.name, values).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, output / "model.onnx")
    return output


def as_bfloat16(name: str, values: np.ndarray) -> np.ndarray:
    """Cut what bfloat16 does not hold: a file that is half precise for its type."""
    return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize(
    "change",
    [
        as_bfloat16,
        lambda name, values: values * np.float16(0.98 if name == "classifier.weight" else 1),
        lambda name, values: values.T if name == "bert.pooler.dense.weight" else values,
    ],
    ids=["too coarse", "a head scaled", "a weight transposed"],
)
def test_a_file_that_is_off_by_more_than_its_precision_is_refused(
    change: Callable[[str, np.ndarray], np.ndarray], bert: Exported, tmp_path: Path
) -> None:
    model, rows, export, folder = bert
    reference = Reference(model, cast(model, "fp16"), "fp16")
    same = FORMATS["onnx"].open(spoilt(folder, tmp_path, lambda name, values: values), written_of(export))
    assert prove_outputs(reference, rows, same, written_of(export))["tolerance"] == export.tolerance
    run = FORMATS["onnx"].open(spoilt(folder, tmp_path, change), written_of(export))
    with pytest.raises(ParityError, match=r"outputs differ by .*PyTorch's own in fp16 is"):
        prove_outputs(reference, rows, run, written_of(export))


def changed_cache(run: Session, change: Callable[[np.ndarray], np.ndarray]) -> Session:
    def changed(inputs: Inputs) -> Mapping[str, np.ndarray]:
        found = dict(run(inputs))
        return {**found, "present.0.value": change(found["present.0.value"])}

    return changed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (np.zeros_like, r"it generates other tokens than PyTorch: token \d+ of 64 after line"),
        (lambda values: values * np.float16(0.998), r"amid generation its logits differ by .*own in fp16 is"),
        (lambda values: values * np.float16("nan"), "it generates other tokens|amid generation"),
    ],
    ids=["lost", "scaled", "no numbers"],
)
def test_a_cache_that_goes_wrong_is_seen_in_half_precision(
    change: Callable[[np.ndarray], np.ndarray], words: str, llama: Exported
) -> None:
    model, rows, export, folder = llama
    reference, written = Reference(model, cast(model, "fp16"), "fp16"), written_of(export)
    run = FORMATS["onnx"].open(folder, written)
    assert prove_generation(reference, rows, run, written)["tokens_generated"] == TOKENS
    with pytest.raises(ParityError, match=words):
        prove_generation(reference, rows, changed_cache(run, change), written)


def test_too_many_changed_labels_are_refused_whatever_the_tolerance(bert: Exported) -> None:
    model, rows, export, folder = bert
    reference = Reference(model, cast(model, "fp16"), "fp16", tolerance=1e6)
    run = FORMATS["onnx"].open(folder, written_of(export))
    assert prove_outputs(reference, rows, run, written_of(export))["tolerance"] == 1e6
    with pytest.raises(ParityError, match="labels agree on"):
        prove_outputs(reference, rows, lambda x: {"logits": -run(x)["logits"]}, written_of(export))


def test_values_beyond_the_range_are_refused_as_such(tiny: Tiny, sample_files: Files, tmp_path: Path) -> None:
    model, rows = load_with_rows(tiny("gpt2"), sample_files("gpt2")["target"])
    with torch.no_grad():
        model.network.score.weight.mul_(1e6)
    with pytest.raises(ParityError, match="PyTorch itself computes no finite outputs in fp16"):
        export_model(model, rows, tmp_path, ExportSettings("torchscript", dtype="fp16"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt.invalid"]


@pytest.mark.slow
def test_a_network_that_branches_on_its_values_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_encoder_decoder("bart")
    monkeypatch.setattr(tracing, "_taking_values_as_finite", contextlib.nullcontext)
    with pytest.raises(ExportError, match="OnnxExporter refuses bart: GuardOnDataDependentSymNode"):
        export_model(model, make_texts(model), tmp_path, FP16)
    printed = capsys.readouterr()
    assert "forward" not in printed.out + printed.err


def test_only_whether_all_values_are_finite_is_answered_beforehand() -> None:
    values = torch.tensor([1.0, float("inf")])
    with tracing._taking_values_as_finite():
        assert torch.isfinite(values).all() is True
        assert not (values < 2).all()
        assert torch.isfinite(values).tolist() == [True, False]
    assert not torch.isfinite(values).all()


# --- using a file ---------------------------------------------------------------------------


def test_steps_with_given_tokens_are_those_of_generation(llama: Exported) -> None:
    model, _, export, folder = llama
    session, inputs = RUNTIMES["onnxruntime"](folder, default_settings("cpu", 1)), prompts(model)
    tokens = generate(session, inputs, export.cache, 12)
    logits = step_logits(session, inputs, export.cache, tokens)
    assert (logits.dtype, logits.shape[:2]) == (np.float32, (3, 12))
    np.testing.assert_array_equal(logits.argmax(axis=-1), tokens)
    assert (tokens == generated(model, inputs, 12)).mean() >= 0.9
    other = step_logits(session, inputs, export.cache, (tokens + 1) % 96)
    np.testing.assert_array_equal(other[:, 0], logits[:, 0])
    assert (other[:, 1:] != logits[:, 1:]).any()


def test_single_tokens_are_timed_with_a_cache_in_half_precision(llama: Exported) -> None:
    model, rows, export, folder = llama
    settings = BenchmarkSettings(batch_sizes=(2,), sequence_lengths=(8,))
    works = make_workloads(model.task, rows, model.processor, settings, export.cache, export.dtype)
    (step,) = works[-1].batches
    assert {step[name].dtype for name in export.cache} == {np.dtype("float16")}
    assert (
        RUNTIMES["onnxruntime"](folder, default_settings("cpu", 1))(step)["present.0.key"].dtype == np.float16
    )


def test_the_example_generates_in_half_precision(llama: Exported) -> None:
    script = Path(__file__).parent.parent / "examples/generate.py"
    done = subprocess.run(
        [sys.executable, script, llama[3], "w1 w2 w3"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("w1 w2 w3 -> w")


# --- TorchScript, and what cannot be run ----------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_torchscript_is_written_in_half_precision(
    dtype: str, tiny: Tiny, sample_files: Files, tmp_path: Path
) -> None:
    model, rows = load_with_rows(tiny("bert"), sample_files("bert")["target"])
    export = export_model(model, rows, tmp_path, ExportSettings("torchscript", dtype=dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        kinds = {weight.dtype for weight in torch.jit.load(tmp_path / "model.pt").parameters()}
    assert kinds == {{"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]}
    assert 0 < export.max_abs_difference <= export.tolerance < {"fp16": 0.02, "bf16": 0.2}[dtype]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", ["export", "run"])
def test_bfloat16_is_refused_where_onnx_runtime_has_no_kernel(
    command: str, tiny: Tiny, sample_files: Files, tmp_path: Path
) -> None:
    """`run` always writes ONNX, whatever else it is asked for."""
    files = sample_files("bert")
    other = ["--format", "torchscript"] if command == "run" else []
    result = invoke(
        command, "-m", tiny("bert"), "--id", files["id"], "--target", files["target"], "-o",
        tmp_path / "out", "--dtype", "bf16", *other,
    )  # fmt: skip
    assert result.exit_code == 1
    assert "could not find an implementation for matmul" in result.stderr.lower()
    assert "bfloat16" in result.stderr
    assert not any(tmp_path.iterdir())


def test_a_precision_that_does_not_exist_is_met_with_the_list() -> None:
    with pytest.raises(ConfigError, match="Unknown dtype 'float16'") as caught:
        RunConfig(dtype="float16")
    assert "bf16, fp16, fp32" in (caught.value.hint or "")


def test_a_file_that_onnx_runtime_refuses_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match="ONNX Runtime cannot run the file on the CPU"):
        FORMATS["onnx"].open(tmp_path, Written("", 18, (), (), ("model.onnx",)))


# --- the whole job --------------------------------------------------------------------------


@pytest.mark.slow
def test_the_whole_job_in_half_precision(tiny: Tiny, tmp_path: Path) -> None:
    files = [write_jsonl(tmp_path / f"{seed}.jsonl", text_records(80, seed)) for seed in (11, 12)]
    out = tmp_path / "out"
    rest = ["--iterations", 2, "--warmup", 0, "--num-threads", 1, "--epsilon", 1, "--pick", 1]
    result = invoke(
        "run", "-m", tiny("bert"), "--id", files[0], "--target", files[1], "-o", out, "--dtype", "fp16", *rest
    )
    assert result.exit_code == 0, result.output
    exports = [read(out / side / "onnx/export.json", Export) for side in ("original", "pruned")]
    assert [export.dtype for export in exports] == ["fp16", "fp16"]
    assert "PyTorch's own in fp16" in result.output
    measured = read(out / "benchmark.json", Benchmark)
    assert measured.size_bytes.pruned < measured.size_bytes.original
    config = transformers.AutoConfig.from_pretrained(out / "pruned/checkpoint")
    assert config.dtype == torch.float32  # a checkpoint keeps its own precision


def test_files_of_different_precisions_are_not_benchmarked(bert: Exported, tmp_path: Path) -> None:
    for name, dtype in (("one", "fp16"), ("other", "fp32")):
        folder = tmp_path / name
        folder.mkdir()
        for file in bert[3].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        described = json.loads((folder / "export.json").read_text())
        (folder / "export.json").write_text(json.dumps({**described, "dtype": dtype}))
    files = [write_jsonl(tmp_path / f"{seed}.jsonl", text_records(20, seed)) for seed in (1, 2)]
    folders = [tmp_path / "one", tmp_path / "other"]
    result = invoke("benchmark", *folders, "--id", files[0], "--target", files[1], "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "in fp16" in result.stderr
    assert "in fp32" in result.stderr
