"""A checkpoint without layers is copied from the files of the whole one, and never loaded."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from conftest import (
    ALL_FAMILIES,
    DECODERS,
    awaken,
    complaint,
    make_decoder,
    make_model,
    make_tokenizer,
    text_records,
    write_jsonl,
)
from safetensors.torch import load_file, save_file

from tapioca_export import memory
from tapioca_export.artifacts import Provenance, Selection, read
from tapioca_export.cli import main
from tapioca_export.errors import LoadError, OutputError, UnsupportedModelError
from tapioca_export.models import (
    LoadedModel,
    drop_layers,
    load_model,
    outline_model,
    proof,
    prunable_stacks,
    rewriting,
    save_pruned,
    shards,
    write_pruned,
)
from tapioca_export.tasks import TASKS, Processor

SMALL, WHOLE = "50KB", "1GB"
Tiny = Callable[[str], Path]
Tensors = dict[str, torch.Tensor]
DROP = [0, 2]


def drop_of(family: str) -> list[int]:
    return [1] if family == "modernbert" else DROP  # ModernBERT's first layer is built otherwise


def save(folder: Path, family: str, dtype: torch.dtype = torch.float32, max_shard_size: str = WHOLE) -> Path:
    make_model(family).to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    if family != "polynomial":
        make_tokenizer(family).save_pretrained(folder)
    return folder


def of_network(network: Any, folder: Path) -> LoadedModel:
    """Take a network for what was loaded from a folder, with no tokenizer."""
    processor = Processor(str(folder), "last-token", 64)
    return LoadedModel(
        network, TASKS["text-classification"], processor, str(folder), prunable_stacks(network)
    )


def tensors_in(folder: Path) -> Tensors:
    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def assert_equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def rename(folder: Path, change: Callable[[str], str]) -> None:
    """Give the tensors of a checkpoint of one file other names."""
    tensors = load_file(folder / "model.safetensors")
    renamed = {change(name): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})


def written(tmp_path: Path, model: LoadedModel, drop: list[int]) -> Path:
    folder = tmp_path / "written"
    folder.mkdir()
    write_pruned(model, drop, folder)
    return folder


# --- what tells weights apart ---------------------------------------------------------------


def test_a_fingerprint_is_that_of_the_weights_and_not_of_their_files(tmp_path: Path) -> None:
    one = save(tmp_path / "one", "bert")
    many = save(tmp_path / "many", "bert", max_shard_size=SMALL)
    (one / "README.md").write_text("about it")
    found = shards.fingerprint_of(one, local_files_only=True)
    assert shards.fingerprint_of(many, local_files_only=True) == found
    half = save(tmp_path / "half", "bert", torch.bfloat16)
    assert shards.fingerprint_of(half, local_files_only=True) != found


@pytest.mark.parametrize("change", ["first", "last", "name", "shape"])
def test_each_tensor_counts_in_a_fingerprint(tmp_path: Path, change: str) -> None:
    """Those too that are longer than what is read of them, and those that are next to nothing."""
    for size in (1, 5000):
        tensors = {"a": torch.zeros(size), "b": torch.zeros(size)}
        save_file(tensors, tmp_path / "model.safetensors")
        before = shards.fingerprint_of(tmp_path, local_files_only=True)
        if change == "name":
            tensors["c"] = tensors.pop("b")
        elif change == "shape":
            tensors["b"] = tensors["b"][None]
        else:
            tensors["b"][0 if change == "first" else -1] = 1.0
        save_file(tensors, tmp_path / "model.safetensors")
        assert shards.fingerprint_of(tmp_path, local_files_only=True) != before


def test_a_selection_prunes_the_model_that_was_searched_and_no_other(tiny: Tiny, tmp_path: Path) -> None:
    id_, target = (write_jsonl(tmp_path / f"{n}.jsonl", text_records(40, n)) for n in (1, 2))
    given = ["-m", tiny("bert"), "--id", id_, "--target", target]
    more = ["--num-threads", 1, "--epsilon", 1, "--max-drop-layers", 1, "-o", tmp_path / "chosen"]
    assert CliRunner().invoke(main, ["select", *map(str, [*given, *more])]).exit_code == 0
    chosen = tmp_path / "chosen/selection.json"
    assert read(chosen, Selection).fingerprint == shards.fingerprint_of(tiny("bert"), local_files_only=True)

    other = Path(shutil.copytree(tiny("bert"), tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["classifier.weight"][0, 0] += 0.01
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    for model, code in ((tiny("bert"), 0), (other, 1)):
        words = ["prune", "-m", model, "--selection", chosen, "--proof", "weights"]
        result = CliRunner().invoke(main, [*map(str, words), "-o", str(tmp_path / f"out{code}")])
        assert result.exit_code == code, result.output
    assert "other weights" in result.stderr


# --- what is written ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "max_shard_size"),
    [(torch.float32, WHOLE), (torch.float32, SMALL), (torch.bfloat16, SMALL), (torch.float16, WHOLE)],
)
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_tensor_is_the_one_that_loading_and_saving_would_write(
    tmp_path: Path, family: str, dtype: torch.dtype, max_shard_size: str
) -> None:
    source, expected = save(tmp_path / "m", family, dtype, max_shard_size), tmp_path / "expected"
    drop_layers(load_model(source), drop_of(family)).network.to(dtype).save_pretrained(expected)
    found = written(tmp_path, outline_model(source), drop_of(family))
    assert_equal(tensors_in(found), tensors_in(expected))
    assert {tensor.dtype for tensor in tensors_in(found).values()} == {dtype}
    one, other = (json.loads((folder / "config.json").read_text()) for folder in (found, expected))
    assert one == other
    stock = transformers.AutoConfig.from_pretrained(found)
    assert stock.dtype == dtype


def test_files_are_split_numbered_and_listed_as_transformers_does(tmp_path: Path) -> None:
    source = save(tmp_path / "m", "llama", torch.bfloat16, "30KB")
    found = written(tmp_path, outline_model(source), DROP)
    files = sorted(found.glob("*.safetensors"))
    assert len(files) > 1
    assert [file.name for file in files] == [
        f"model-{number + 1:05d}-of-{len(files):05d}.safetensors" for number in range(len(files))
    ]
    index = json.loads((found / "model.safetensors.index.json").read_text())
    for file in files:
        listed = {name for name, place in index["weight_map"].items() if place == file.name}
        assert listed == load_file(file).keys()
    size = sum(tensor.nbytes for tensor in tensors_in(found).values())
    assert index["metadata"]["total_size"] == size
    largest = max(file.stat().st_size for file in source.glob("*.safetensors"))
    assert max(file.stat().st_size for file in files) <= largest


def test_tensors_of_mixed_types_stay_what_they_are_and_start_where_their_type_can(tmp_path: Path) -> None:
    source = save(tmp_path / "m", "bert", torch.bfloat16)
    tensors = load_file(source / "model.safetensors")
    wide = "bert.encoder.layer.3.output.dense.weight"
    tensors[wide] = tensors[wide].float() + 1e-6
    # Six bytes come first, from a file of their own, and all goes into one.
    odd = {"classifier.bias": tensors.pop("classifier.bias")}
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name, part in zip(names, (odd, tensors), strict=True):
        save_file(part, source / name, {"format": "pt"})
    weight_map = {**dict.fromkeys(odd, names[0]), **dict.fromkeys(tensors, names[1])}
    index = {"metadata": {}, "weight_map": weight_map}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    (source / "model.safetensors").unlink()
    found = written(tmp_path, outline_model(source), DROP)
    after = load_file(found / "model.safetensors")
    assert torch.equal(after["bert.encoder.layer.1.output.dense.weight"], tensors[wide])
    assert after["bert.encoder.layer.1.output.dense.weight"].dtype == torch.float32
    assert torch.equal(after["classifier.bias"], odd["classifier.bias"])
    stored = shards.read_weights(found, local_files_only=True).tensors
    assert {tensor.start % 4 for tensor in stored.values() if tensor.dtype == "F32"} == {0}


def test_what_is_written_is_proven_by_logits_in_float32(tmp_path: Path) -> None:
    source = save(tmp_path / "m", "llama", torch.bfloat16, SMALL)
    model, folder = load_model(source), tmp_path / "out"
    folder.mkdir()
    batches = model.task.examples(model.processor)
    assert save_pruned(model, DROP, folder, batches) is None
    assert {tensor.dtype for tensor in tensors_in(folder).values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_dropping_nothing_copies_every_tensor(tmp_path: Path) -> None:
    source = save(tmp_path / "m", "bert", max_shard_size=SMALL)
    assert_equal(tensors_in(written(tmp_path, outline_model(source), [])), tensors_in(source))


# --- names ----------------------------------------------------------------------------------


def without_base(name: str) -> str:
    return name.removeprefix("bert.")


def old_style(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.mark.parametrize("change", [without_base, old_style], ids=["no base prefix", "gamma and beta"])
def test_names_that_transformers_reads_otherwise_mean_the_same_layers(
    tmp_path: Path, change: Callable[[str], str]
) -> None:
    source = save(tmp_path / "m", "bert")
    expected = drop_layers(load_model(source), DROP).network
    rename(source, change)
    found = written(tmp_path, outline_model(source), DROP)
    assert all(name == change(name) for name in tensors_in(found))
    assert_equal(load_model(found).network.state_dict(), expected.state_dict())


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_stored_one_by_one_move_with_their_layer(tmp_path: Path, family: str) -> None:
    torch.manual_seed(0)
    experts = {"mixtral": "num_local_experts", "qwen3_moe": "num_experts"}[family]
    sizes = {**DECODERS["llama"], "moe_intermediate_size": 16, "head_dim": 8, experts: 4}
    config = transformers.AutoConfig.for_model(family, **sizes)
    network = awaken(transformers.AutoModelForCausalLM.from_config(config)).to(torch.bfloat16)
    network.save_pretrained(tmp_path / "m", max_shard_size=SMALL)
    assert any(".experts.3." in name for name in tensors_in(tmp_path / "m"))  # in memory they are one
    model = of_network(network, tmp_path / "m")
    found = written(tmp_path, model, DROP)
    again, info = type(network).from_pretrained(found, output_loading_info=True)
    assert not any(info.values())
    assert_equal(again.state_dict(), drop_layers(model, DROP).network.state_dict())


@pytest.mark.parametrize(
    "names", [("encoder:0",), ("encoder:1",), ("decoder:0",), ("decoder:1",), ("encoder:0", "decoder:2")]
)
def test_t5s_relative_positions_stay_with_the_lowest_layer(tmp_path: Path, names: tuple[str, ...]) -> None:
    config = transformers.T5Config(
        vocab_size=96, d_model=16, d_kv=4, d_ff=16, num_heads=4, decoder_start_token_id=0, num_layers=3,
        num_decoder_layers=3,
    )  # fmt: skip
    torch.manual_seed(0)
    network = awaken(transformers.T5ForConditionalGeneration(config))
    network.save_pretrained(tmp_path / "m", max_shard_size=SMALL)
    model = of_network(network, tmp_path / "m")
    drop = sorted(model.numbering.indices(names))
    found = written(tmp_path, model, drop)
    again, info = type(network).from_pretrained(found, output_loading_info=True)
    assert not any(info.values())
    assert_equal(again.state_dict(), drop_layers(model, drop).network.state_dict())


def test_what_is_tied_is_stored_once_and_stays_tied(tmp_path: Path) -> None:
    network = make_decoder("gpt2")
    network.save_pretrained(tmp_path / "m")
    found = written(tmp_path, of_network(network, tmp_path / "m"), DROP)
    assert "lm_head.weight" not in tensors_in(found)
    again = transformers.GPT2LMHeadModel.from_pretrained(found)
    assert again.lm_head.weight is again.transformer.wte.weight


def test_tensors_that_the_class_does_not_read_are_left_out(tmp_path: Path) -> None:
    source = save(tmp_path / "m", "bert")
    more = {"cls.predictions.bias": torch.ones(3), "bert.encoder.layer.9.output.dense.bias": torch.ones(3)}
    file = source / "model.safetensors"
    save_file({**load_file(file), **more}, file, {"format": "pt"})
    assert not more.keys() & tensors_in(written(tmp_path, outline_model(source), DROP)).keys()


def test_names_that_cannot_be_mapped_are_saved_from_memory_and_this_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewriting, "_renumberings", lambda name, before, after: [name])
    source = save(tmp_path / "m", "bert", torch.bfloat16)
    result = prune(source, tmp_path / "out", "--num-threads", 1)
    assert result.exit_code == 0, result.output
    assert "cannot be renamed with certainty" in result.stdout
    assert "saved from memory, in float32" in str(read(tmp_path / "out/selection.json", Selection).note)
    assert {tensor.dtype for tensor in tensors_in(tmp_path / "out").values()} == {torch.float32}
    refused(prune(source, tmp_path / "w", "--proof", "weights"), "cannot be renamed", "--proof logits")


def test_a_checkpoint_whose_config_names_the_file_of_its_weights_is_not_copied(tmp_path: Path) -> None:
    model = outline_model(save(tmp_path / "m", "bert"))
    model.network.config.transformers_weights = "something"
    with pytest.raises(rewriting.UnmappedNamesError, match="file by file"):
        written(tmp_path, model, DROP)


def test_a_checkpoint_that_would_not_load_is_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = outline_model(save(tmp_path / "m", "bert"))
    right = rewriting._renamed

    def forgetful(*arguments: Any) -> dict[str, str]:
        found = right(*arguments)
        del found["bert.encoder.layer.1.output.dense.bias"]
        return found

    monkeypatch.setattr(rewriting, "_renamed", forgetful)
    with pytest.raises(UnsupportedModelError, match=r"layer\.1\.output\.dense\.bias \(missing"):
        written(tmp_path, model, DROP)
    assert not list((tmp_path / "written").iterdir())


# --- the command ----------------------------------------------------------------------------


def prune(source: Path | str, output: Path, *more: object) -> Result:
    arguments = ["prune", "-m", source, "--drop", "0,2", "-o", output, *more]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    line, _hint = complaint(result)
    assert line.startswith("Error: ")
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize("by", ["logits", "weights"])
def test_a_checkpoint_says_how_it_was_proven(
    tiny: Tiny, tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "weights":
        monkeypatch.setattr(transformers.BertForSequenceClassification, "forward", None)
        monkeypatch.setattr("tapioca_export.commands.load_model", None)
    result = prune(tiny("bert"), tmp_path / "out", "--proof", by, "--num-threads", 1)
    assert result.exit_code == 0, result.output
    assert read(tmp_path / "out/selection.json", Selection).proof == by
    card = (tmp_path / "out/README.md").read_text()
    assert ("No logits were computed" in card) == (by == "weights")
    assert load_model(tmp_path / "out").num_layers == 2


def test_proof_by_weights_takes_no_samples(tiny: Tiny, tmp_path: Path) -> None:
    refused(prune(tiny("bert"), tmp_path / "out", "--proof", "weights", "--id", __file__), "--id")


def test_what_goes_with_a_checkpoint_is_carried_over_and_other_weights_are_not(tmp_path: Path) -> None:
    source = save(tmp_path / "m", "bert", max_shard_size=SMALL)
    (source / "LICENSE").write_text("terms")
    (source / "generation_config.json").write_text('{"max_new_tokens": 7}')
    for name in ("pytorch_model.bin", "optimizer.pt", "modeling_mine.py", "extra.safetensors"):
        (source / name).write_text("no")
    result = prune(source, tmp_path / "out", "--proof", "weights")
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors"} == {
        "LICENSE", "README.md", "config.json", "generation_config.json", "model.safetensors.index.json",
        "provenance.json", "selection.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert (tmp_path / "out/LICENSE").read_text() == "terms"
    assert not (tmp_path / "out/extra.safetensors").exists()
    # Of the weights, hashes are taken while they are written.
    recorded = read(tmp_path / "out/provenance.json", Provenance).outputs
    files = [path for path in (tmp_path / "out").iterdir() if path.name != "provenance.json"]
    assert recorded == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert sum(path.suffix == ".safetensors" for path in files) > 1


def in_a_fresh_process(arguments: list[object], **environment: str) -> None:
    child = subprocess.run(
        [sys.executable, "-m", "tapioca_export", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr


def test_a_name_on_the_hub_is_read_from_the_cache(tmp_path: Path) -> None:
    repository = tmp_path / "hub/models--someone--tiny"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    snapshot = save(repository / "snapshots/abc", "bert", torch.bfloat16, SMALL)
    for number, file in enumerate(sorted(snapshot.iterdir())):  # as the hub's client keeps them
        shutil.move(file, repository / f"blobs/{number}")
        file.symlink_to(f"../../blobs/{number}")
    in_a_fresh_process(
        ["prune", "-m", "someone/tiny", "--drop", "0,2", "--proof", "weights", "-o", tmp_path / "out"],
        HF_HUB_CACHE=str(tmp_path / "hub"),
        HF_HUB_OFFLINE="1",
    )
    before, after = tensors_in(snapshot), tensors_in(tmp_path / "out")
    name = "bert.encoder.layer.{}.output.dense.weight"
    assert torch.equal(after[name.format(1)], before[name.format(3)])
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


CODE = "import transformers\n\n\nclass Mine(transformers.BertForSequenceClassification):\n    pass\n"
AUTO_MAP = {"AutoModelForSequenceClassification": "modeling_mine.Mine"}


def save_with_code(folder: Path) -> Path:
    """Save a model whose class stands beside it."""
    source = save(folder, "bert")
    (source / "modeling_mine.py").write_text(CODE)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "auto_map": AUTO_MAP}))
    return source


def test_code_that_is_trusted_goes_with_the_checkpoint(tmp_path: Path) -> None:
    source = save_with_code(tmp_path / "m")
    refused(prune(source, tmp_path / "out", "--proof", "weights"), "needs custom code", "--trust-remote-code")
    in_a_fresh_process(
        [
            "prune", "-m", source, "--drop", "0,2", "--proof", "weights", "--trust-remote-code", "-o",
            tmp_path / "out",
        ],
        HF_MODULES_CACHE=str(tmp_path / "modules"),
    )  # fmt: skip
    assert (tmp_path / "out/modeling_mine.py").read_text() == CODE
    after = json.loads((tmp_path / "out/config.json").read_text())
    assert (after["auto_map"], after["architectures"]) == (AUTO_MAP, ["Mine"])


@pytest.mark.slow
def test_code_that_is_trusted_goes_with_an_export_and_is_trusted_again(tmp_path: Path) -> None:
    source, rows = save_with_code(tmp_path / "m"), {}
    for seed, name in enumerate(("id", "target")):
        rows[name] = write_jsonl(tmp_path / f"{name}.jsonl", text_records(32, seed))
    trusting = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    task = ["-t", "text-classification", "--trust-remote-code"]
    in_a_fresh_process(
        ["export", "-m", source, "--id", rows["id"], "-o", tmp_path / "onnx", *task], **trusting
    )
    assert (tmp_path / "onnx/modeling_mine.py").is_file()
    benchmark = [
        "benchmark", tmp_path / "onnx", tmp_path / "onnx", "--id", rows["id"], "--target", rows["target"],
        "-o", tmp_path / "b", "--iterations", 2, "--warmup", 0,
    ]  # fmt: skip
    result = CliRunner().invoke(main, [str(argument) for argument in benchmark])
    refused(result, "needs custom code", "--trust-remote-code")
    in_a_fresh_process([*benchmark, "--trust-remote-code"], **trusting)
    assert (tmp_path / "b/benchmark.json").is_file()


# --- hostile and broken files ---------------------------------------------------------------


def shards_of(source: Path) -> list[Path]:
    return sorted(source.glob("model-*.safetensors"))


def edit_index(source: Path, change: Callable[[dict[str, str]], Any]) -> None:
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def edit_header(source: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = shards_of(source)[0]
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def first_tensor(header: dict[str, Any]) -> dict[str, Any]:
    return next(value for name, value in header.items() if name != "__metadata__")


def set_offsets(header: dict[str, Any]) -> None:
    first_tensor(header)["data_offsets"] = [0, 10**12]


def set_shape(header: dict[str, Any]) -> None:
    first_tensor(header)["shape"] = [1, 1]


def set_dtype(header: dict[str, Any]) -> None:
    first_tensor(header)["dtype"] = "X99"


def lose_a_tensor(source: Path) -> None:
    tensors = load_file(shards_of(source)[1])
    del tensors[min(tensors)]
    save_file(tensors, shards_of(source)[1], {"format": "pt"})


def lose_it_everywhere(source: Path) -> None:
    name = min(load_file(shards_of(source)[1]))
    lose_a_tensor(source)
    edit_index(source, lambda weight_map: weight_map.pop(name))


def store_twice(source: Path) -> None:
    first, second, *_ = shards_of(source)
    one, other = load_file(first), load_file(second)
    save_file({**other, **dict([min(one.items())])}, second, {"format": "pt"})


def point_outside(source: Path) -> None:
    shutil.copy(shards_of(source)[0], source.parent / "x.safetensors")
    edit_index(source, lambda weight_map: weight_map.update({min(weight_map): "../x.safetensors"}))


SPOILT: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "cut off": (lambda m: os.truncate(shards_of(m)[1], 9000), ("model-00002", "no whole safetensors file")),
    "no header": (lambda m: shards_of(m)[1].write_bytes(b"x" * 99), ("model-00002", "no whole")),
    "empty": (lambda m: shards_of(m)[1].write_bytes(b""), ("model-00002", "no whole")),
    "offsets lie": (lambda m: edit_header(m, set_offsets), ("model-00001", "no whole")),
    "shape lies": (lambda m: edit_header(m, set_shape), ("model-00001", "no whole")),
    "type lies": (lambda m: edit_header(m, set_dtype), ("model-00001", "no whole")),
    "file is gone": (lambda m: shards_of(m)[1].unlink(), ("model-00002", "No such file")),
    "tensor in no file": (lose_a_tensor, ("no tensor", "index names it")),
    "tensor nowhere": (lose_it_everywhere, ("no weights for",)),
    "tensor twice": (store_twice, ("both hold a tensor",)),
    "file outside": (point_outside, ("'../x.safetensors'", "in its folder")),
    "file at the root": (
        lambda m: edit_index(m, lambda w: w.update({min(w): "/etc/x.safetensors"})),
        ("'/etc/x.safetensors'", "in its folder"),
    ),
    "file is a pickle": (
        lambda m: edit_index(m, lambda w: w.update({min(w): "pytorch_model.bin"})),
        ("'pytorch_model.bin'", "in its folder"),
    ),
    "file is a number": (lambda m: edit_index(m, lambda w: w.update({min(w): 7})), ("names 7",)),
    "index is not JSON": (lambda m: (m / "model.safetensors.index.json").write_text("{"), ("no index",)),
    "index is a list": (lambda m: (m / "model.safetensors.index.json").write_text("[]"), ("no index",)),
    "index is empty": (lambda m: edit_index(m, dict.clear), ("names no weights",)),
}


@pytest.mark.parametrize("case", SPOILT)
def test_files_that_are_not_what_they_say_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    source = save(tmp_path / "m", "bert", max_shard_size=SMALL)
    spoil, words = SPOILT[case]
    spoil(source)
    refused(prune(source, tmp_path / "out", "--proof", "weights"), *words)
    assert not (tmp_path / "out").exists()


def test_a_source_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(tmp_path / "m", "bert", max_shard_size=SMALL)
    compare = shards._compare

    def compare_and_touch(*arguments: Any) -> None:
        compare(*arguments)
        os.utime(shards_of(source)[0])

    monkeypatch.setattr(shards, "_compare", compare_and_touch)
    refused(prune(source, tmp_path / "out", "--proof", "weights"), "model-00001", "changed while it was read")
    assert not (tmp_path / "out").exists()


def test_a_source_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "m", "bert")
    stored = shards.read_weights(source, local_files_only=True).tensors["classifier.weight"]
    os.truncate(source / "model.safetensors", stored.start + 4)
    with pytest.raises(LoadError, match="ends before its weights do"):
        list(shards._blocks(stored))


def test_a_byte_that_is_written_wrongly_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = outline_model(save(tmp_path / "m", "bert"))
    write = shards._write_file

    def flip_the_last_byte(file: Path, *rest: Any) -> None:
        write(file, *rest)
        with file.open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            (last,) = stream.read(1)
            stream.seek(-1, os.SEEK_END)
            stream.write(bytes([last ^ 1]))

    monkeypatch.setattr(shards, "_write_file", flip_the_last_byte)
    with pytest.raises(OutputError, match="is not what was written"):
        written(tmp_path, model, DROP)


def test_a_full_disk_is_one_line(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shards, "_write_file", fail)
    refused(prune(tiny("bert"), tmp_path / "out", "--proof", "weights"), "No space left on device")
    assert not (tmp_path / "out").exists()


# --- memory ---------------------------------------------------------------------------------


def test_a_model_that_is_larger_than_memory_is_refused_before_it_is_loaded(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 4 * load_model(tiny("bert")).network.num_parameters()
    for free, fits in ((size, True), (size - 1, False)):
        monkeypatch.setattr(proof, "available_bytes", lambda free=free: free)
        result = prune(tiny("bert"), tmp_path / f"{free}", "--num-threads", 1)
        if fits:
            assert result.exit_code == 0, result.output
        else:
            refused(result, "float32", "of memory are free", "--proof weights")
    assert prune(tiny("bert"), tmp_path / "w", "--proof", "weights").exit_code == 0


def test_what_is_tied_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_decoder("gpt2")
    network.save_pretrained(tmp_path)
    make_tokenizer("gpt2").save_pretrained(tmp_path)
    monkeypatch.setattr(proof, "available_bytes", lambda: 4 * network.num_parameters())
    proof.refuse_larger_than_memory(outline_model(tmp_path, "text-generation"))


def test_the_memory_that_is_free_is_told() -> None:
    found = memory.available_bytes()
    assert found is not None
    assert 50e6 < found < 1e15


PEAKS = """
import sys
from tapioca_export.cli import main
from tapioca_export.memory import peak_resident_bytes

for name in ("small", "large"):
    main(["prune", "-m", name, "-t", "text-generation", "--drop", "0,2", "--proof", "weights", "-o",
          f"{name}-out", "-q"], standalone_mode=False)
    print(peak_resident_bytes())
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    for name, width in (("small", 32), ("large", 1280)):
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 6}
        network = make_decoder("llama", **sizes, num_attention_heads=8, num_key_value_heads=8)
        network.to(torch.bfloat16).save_pretrained(tmp_path / name, max_shard_size="120MB")
        make_tokenizer("llama").save_pretrained(tmp_path / name)
    del network
    total = sum(file.stat().st_size for file in (tmp_path / "large").glob("*.safetensors"))
    assert total > 250e6
    child = subprocess.run(
        [sys.executable, "-c", PEAKS], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    small, large = map(int, child.stdout.split())
    # Measured: 2 MB. A tensor of the largest has 13 MB, a file 120 MB.
    assert large - small < 12e6


def test_readme_says_what_the_benchmark_measured() -> None:
    root = Path(__file__).parent.parent
    found = json.loads((root / "benchmarks/prune.json").read_text(encoding="utf-8"))
    said = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"{found['source_bytes'] / 1e9:.1f} GB in files of up to {found['largest_file_bytes'] / 1e6:.0f} MB"
        in said
    )
    assert f"in {found['median_ratio']['seconds']:.2f} of the time" in said
    assert f"peak of {found['peak_bytes'] / 1e6:.0f} MB of memory" in said
    assert found["median_ratio"]["seconds_until_on_disk"] < 1.2
    assert found["peak_bytes"] < found["largest_file_bytes"] + 500e6
