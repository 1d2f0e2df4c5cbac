"""Faults of pruned checkpoints: which layers go, what is written of those that stay, what goes with it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tapioca_export import RunConfig, checkpoints, numbering, prune
from tapioca_export.models import proof, rewriting, shards, surgery

from .base import Job, Mutant, Patch, Scenario, before, behind
from .models import checkpoint


@functools.cache
def pruning(
    family: str,
    drop: tuple[Any, ...] = (1,),
    how: str = "logits",
    scale: tuple[tuple[Any, float], ...] = (),
    dtype: str = "float32",
    shard: str = "1GB",
    from_memory: bool = False,
) -> Scenario:
    """Return the scenario that prunes a checkpoint of a family."""

    def prepare(job: Job) -> dict[str, Any]:
        return {"model": checkpoint(family, dtype, shard)}

    def run(job: Job) -> None:
        named = any("." in str(layer) for layer in drop)
        config = RunConfig(
            model=str(job["model"]), drop=drop, output=job.output, num_threads=1,
            granularity="sublayer" if named else "block",
        )  # fmt: skip
        if from_memory:
            with Patch.context() as patch:
                patch.setattr(proof, "write_pruned", _refusing)
                prune(config, None, how, dict(scale))
        else:
            prune(config, None, how, dict(scale))

    said = [family, *([dtype] if dtype != "float32" else []), *(["in shards"] if shard != "1GB" else [])]
    what = [f"drop {', '.join(map(str, drop))}"] if drop else []
    what += [f"scale {layer} by {factor}" for layer, factor in scale]
    ways = [*(["from memory"] if from_memory else []), *([f"--proof {how}"] if how != "logits" else [])]
    return Scenario(f"prune {' '.join(said)}, {', '.join([*what, *ways])}", "prune", prepare, run)


def _refusing(*_: Any) -> None:
    raise rewriting.UnmappedNamesError("its tensors are not told apart by name.")


# --- what is broken -------------------------------------------------------------------------


def neighbour(patch: Patch, job: Job) -> None:
    """The files are written without the layer above the one that was named."""
    before(patch, proof, "write_pruned", lambda model, units, *more: (model, [u + 1 for u in units], *more))


def neighbour_by_name(patch: Patch, job: Job) -> None:
    """Every name of a layer is read as that of the layer above."""
    behind(patch, numbering.Numbering, "_layer", lambda found, *_: found + 1)


def neighbour_in_memory(patch: Patch, job: Job) -> None:
    """What is saved from memory lacks the layer above the one that was named."""
    before(patch, proof, "drop_layers", lambda model, layers: (model, [layer + 1 for layer in layers]))


def fewer(patch: Patch, job: Job) -> None:
    """One of the layers that were named stays."""
    before(patch, proof, "write_pruned", lambda model, units, *more: (model, units[:-1], *more))


def _in_written(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Patch, Job], None]:
    """Change the tensors of a file after it was written and read back."""

    def spoil(patch: Patch, job: Job) -> None:
        def rewrite(_: None, __: Any, ___: Any, folder: Path) -> None:
            for file in sorted(folder.glob("*.safetensors"))[:1]:
                tensors = load_file(file)
                change(tensors)
                save_file(tensors, file, {"format": "pt"})

        behind(patch, rewriting, "write_weights", rewrite)

    return spoil


def _square(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the name of a square matrix inside a layer."""
    return next(
        n for n, t in sorted(tensors.items()) if t.dim() == 2 and len(set(t.shape)) == 1 and ".0." in n
    )


def _transpose(tensors: dict[str, torch.Tensor]) -> None:
    name = _square(tensors)
    tensors[name] = tensors[name].T.contiguous()


def _flip_bit(tensors: dict[str, torch.Tensor]) -> None:
    name = _square(tensors)
    flat = tensors[name].view(torch.int32 if tensors[name].element_size() == 4 else torch.int16).reshape(-1)
    flat[0] ^= 1 << (22 if tensors[name].element_size() == 4 else 9)


def _round(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        tensors[name] = tensor.half().to(tensor.dtype)


def _scale_norm(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in sorted(tensors) if "norm" in name.lower() or "ln_" in name)
    tensors[name] = tensors[name] * 1.01


def _drop_bias(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in sorted(tensors) if name.endswith("bias") and ".0." in name)
    tensors[name] = torch.zeros_like(tensors[name])


def truncated(patch: Patch, job: Job) -> None:
    """The weight file ends early."""

    def cut(_: None, __: Any, ___: Any, folder: Path) -> None:
        file = next(iter(sorted(folder.glob("*.safetensors"))))
        with file.open("r+b") as stream:
            stream.truncate(file.stat().st_size - 64)

    behind(patch, rewriting, "write_weights", cut)


def _in_file(change: Callable[[bytearray], None]) -> Callable[[Patch, Job], None]:
    """Change the bytes of a file between the writing and the reading back."""

    def spoil(patch: Patch, job: Job) -> None:
        def rewrite(_: None, file: Path, *__: Any) -> None:
            content = bytearray(file.read_bytes())
            change(content)
            file.write_bytes(content)

        behind(patch, shards, "_write_file", rewrite)

    return spoil


def _flip_last(content: bytearray) -> None:
    content[-5] ^= 1


def _cut_short(content: bytearray) -> None:
    del content[-64:]


def _mislabel(content: bytearray) -> None:
    content[:] = content.replace(b'"F16"', b'"I16"', 1)


def _taken(change: Callable[[dict[str, str]], None]) -> Callable[[Patch, Job], None]:
    """Change which tensor of the source becomes which: new name -> old name."""

    def spoil(patch: Patch, job: Job) -> None:
        def rename(found: dict[str, str], *_: Any) -> dict[str, str]:
            changed = dict(found)
            change(changed)
            return changed

        behind(patch, rewriting, "_renamed", rename)

    return spoil


def _swap_layers(taken: dict[str, str]) -> None:
    for name in [name for name in taken if ".0." in name]:
        other = name.replace(".0.", ".1.", 1)
        if other in taken:
            taken[name], taken[other] = taken[other], taken[name]


def _dropped_into_kept(taken: dict[str, str]) -> None:
    name = next(name for name in taken if ".1." in name and name.endswith("weight"))
    taken[name] = name  # in the source, that is the layer that goes


def _one_too_few(taken: dict[str, str]) -> None:
    del taken[next(name for name in taken if ".1." in name)]


def in_config(name: str, value: Any) -> Callable[[Patch, Job], None]:
    """Write something else into config.json than the network was built with; a function gets what it was."""

    def spoil(patch: Patch, job: Job) -> None:
        def rewrite(_: None, __: Any, folder: Path) -> None:
            change_json(folder / "config.json", name, value)

        behind(patch, rewriting, "_write_config", rewrite)

    return spoil


def mended(name: str, value: Any) -> Callable[[Patch, Job], None]:
    """Build and write the network by a config that says something else; a function gets what it was."""

    def spoil(patch: Patch, job: Job) -> None:
        def change(config: Any, *_: Any) -> None:
            setattr(config, name, value(getattr(config, name)) if callable(value) else value)

        behind(patch, surgery, "mended_config", change)

    return spoil


def change_json(file: Path, name: str, value: Any) -> None:
    """Give a field of a JSON file another value, or take it away with None."""
    fields = json.loads(file.read_text(encoding="utf-8"))
    made = value(fields.get(name)) if callable(value) else value
    if made is None:
        fields.pop(name, None)
    else:
        fields[name] = made
    file.write_text(json.dumps(fields), encoding="utf-8")


def rotated(labels: Mapping[str, str]) -> dict[str, str]:
    """Return names of labels, each at the next place."""
    names = list(labels.values())
    return dict(zip(labels, [*names[1:], names[0]], strict=True))


def lowest_forgotten(patch: Patch, job: Job) -> None:
    """What only the lowest layer has is dropped with it."""
    patch.setattr(surgery, "OF_THE_LOWEST", ())


def of_processor(change: Callable[[Path], None]) -> Callable[[Patch, Job], None]:
    """Change what stands beside the weights after it was written."""

    def spoil(patch: Patch, job: Job) -> None:
        behind(patch, rewriting, "_copy_side_files", lambda _, __, folder: change(folder))

    return spoil


def no_tokenizer(folder: Path) -> None:
    """No file of the tokenizer was written."""
    for file in folder.glob("tokenizer*"):
        file.unlink()


def other_tokenizer(folder: Path) -> None:
    """Two words of the vocabulary have each other's ids."""
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    fields = json.loads(text)
    vocabulary = fields["model"]["vocab"]
    words = [word for word in vocabulary if word.startswith("w")]
    ids = [vocabulary[word] for word in words]
    vocabulary.update(zip(words, [*ids[1:], ids[0]], strict=True))
    (folder / "tokenizer.json").write_text(json.dumps(fields), encoding="utf-8")


def no_template(folder: Path) -> None:
    """The tokenizer puts no special tokens around a text."""
    change_json(folder / "tokenizer.json", "post_processor", None)


def _factors(change: Callable[[dict[str, tuple[float, float]]], Any]) -> Callable[[Patch, Job], None]:
    return lambda patch, job: behind(patch, rewriting, "_factors", lambda found, *_: change(found))


def _above(factors: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    return {name.replace(".2.", ".3."): factor for name, factor in factors.items()}


def damped_above(patch: Patch, job: Job) -> None:
    """The layer above the one that was named is damped, in memory as well as in the file."""
    behind(
        patch, checkpoints, "changed_layers",
        lambda found, *_: (found[0], {layer + 1: change for layer, change in found[1].items()}),
    )  # fmt: skip


def dropped_above(patch: Patch, job: Job) -> None:
    """The layer above the one that was named is dropped, in memory as well as in the file."""
    behind(patch, checkpoints, "changed_layers", lambda found, *_: (tuple(u + 1 for u in found[0]), found[1]))


def half_folded(patch: Patch, job: Job) -> None:
    """Of a layer's two branches, one alone is damped."""

    def first(found: Any, *_: Any) -> Any:
        return {layer: dict(list(weights.items())[:1]) for layer, weights in found.items()}

    behind(patch, checkpoints, "damping_weights", first)


def offset_forgotten(patch: Patch, job: Job) -> None:
    """A norm that adds one to its weight is folded as if it did not."""
    behind(
        patch, checkpoints, "damping_weights",
        lambda found, *_: {layer: dict.fromkeys(weights, 0.0) for layer, weights in found.items()},
    )  # fmt: skip


def _silent(change: Callable[[list[str]], list[str]]) -> Callable[[Patch, Job], None]:
    return lambda patch, job: behind(patch, rewriting, "silent_weights", lambda found, *_: change(found))


BERT, GPT2, LLAMA, QWEN2 = pruning("bert"), pruning("gpt2"), pruning("llama"), pruning("qwen2", (0,))
GEMMA2, T5, LFM2 = pruning("gemma2", (0,)), pruning("t5", ("encoder:0", "decoder:1")), pruning("lfm2", (0,))
WEIGHTS = pruning("llama", how="weights")
SHARDS = pruning("llama", how="logits", shard="50KB")
SHARD_WEIGHTS = pruning("bert", how="weights", shard="50KB")
HALF = pruning("llama", dtype="float16")
HALF_WEIGHTS = pruning("llama", how="weights", dtype="float16")
TIED, SCALED, MEMORY = pruning("tied"), pruning("scaled"), pruning("bert", from_memory=True)
DAMPED, DAMPED_GEMMA = pruning("llama", (), scale=((2, 0.5),)), pruning("gemma2", (0,), scale=((2, 0.5),))
SUBLAYER = pruning("llama", ("1.attention",))
SUBLAYER_BERT = pruning("bert", ("2.mlp",))

MUTANTS = (
    *(
        Mutant(
            "the neighbour is dropped", "the files lack the layer above the one that was named", s, neighbour
        )
        for s in (BERT, GPT2, LLAMA, GEMMA2, LFM2, T5, SHARDS)
    ),
    *(
        Mutant(
            "names read off by one",
            "each layer's name means the layer above, everywhere",
            s,
            neighbour_by_name,
        )
        for s in (BERT, WEIGHTS)
    ),
    *(
        Mutant("layers meant off by one", "proof and files mean the layer above", s, dropped_above)
        for s in (BERT, SUBLAYER)
    ),
    Mutant("one layer stays", "one of two layers that were named is kept", pruning("bert", (0, 2)), fewer),
    Mutant(
        "the neighbour is dropped",
        "what is saved from memory lacks the layer above",
        MEMORY,
        neighbour_in_memory,
    ),
    *(
        Mutant("two layers swapped", "two kept layers have each other's weights", s, _taken(_swap_layers))
        for s in (BERT, GPT2, LLAMA, QWEN2, LFM2)
    ),
    *(
        Mutant(
            "a dropped layer's weight kept",
            "a kept layer has a weight of the dropped one",
            s,
            _taken(_dropped_into_kept),
        )
        for s in (BERT, LLAMA)
    ),
    *(
        Mutant("a weight left out", "one weight of a kept layer is not written", s, _taken(_one_too_few))
        for s in (BERT, WEIGHTS)
    ),
    *(
        Mutant("a transposed weight", "one square matrix is transposed", s, _in_written(_transpose))
        for s in (BERT, LLAMA, SHARDS, HALF)
    ),
    *(
        Mutant("a flipped bit", "one bit of one weight is another", s, _in_written(_flip_bit))
        for s in (BERT, SHARDS, HALF)
    ),
    Mutant("weights rounded", "float32 weights went through float16", LLAMA, _in_written(_round)),
    Mutant("a norm scaled", "one norm's weight is 1 % larger", GEMMA2, _in_written(_scale_norm)),
    Mutant("a bias lost", "one bias is zeros", GPT2, _in_written(_drop_bias)),
    *(
        Mutant(
            "a flipped bit on disk", "one bit is another when the file is read back", s, _in_file(_flip_last)
        )
        for s in (WEIGHTS, SHARD_WEIGHTS, LLAMA)
    ),
    Mutant("a short file on disk", "the file is shorter when it is read back", WEIGHTS, _in_file(_cut_short)),
    Mutant(
        "a type mislabelled", "the header says int16 of a float16 weight", HALF_WEIGHTS, _in_file(_mislabel)
    ),
    *(Mutant("a truncated file", "the weight file ends early", s, truncated) for s in (BERT, SHARDS)),
    *(
        Mutant(
            "a stale num_hidden_layers",
            "config.json has the whole model's depth",
            s,
            in_config("num_hidden_layers", 4),
        )
        for s in (BERT, LLAMA, WEIGHTS)
    ),
    Mutant("a stale n_layer", "config.json has the whole model's depth", GPT2, in_config("n_layer", 4)),
    *(
        Mutant(
            "an unsliced layer_types",
            "config.json has the kinds of the first layers, not of those kept",
            s,
            mended("layer_types", types),
        )
        for s, types in (
            (QWEN2, ["full_attention", "full_attention", "sliding_attention"]),
            (GEMMA2, ["sliding_attention", "full_attention", "sliding_attention"]),
            (LFM2, ["conv", "full_attention", "conv"]),
        )
    ),
    Mutant(
        "an unsliced layer_types",
        "config.json has the kinds of the first layers, not of those kept",
        pruning("qwen2", (0,), "weights"),
        in_config("layer_types", ["full_attention", "full_attention", "sliding_attention"]),
    ),
    Mutant(
        "layer_types of the whole",
        "config.json names the kinds of all layers",
        QWEN2,
        in_config("layer_types", ["full_attention"] * 2 + ["sliding_attention"] * 2),
    ),
    Mutant(
        "stack depths swapped",
        "config.json has the decoder's depth for the encoder's",
        pruning("t5", ("encoder:0",)),
        in_config("num_layers", 3),
    ),
    Mutant(
        "an untied head",
        "config.json says that the head is no longer the embedding",
        TIED,
        in_config("tie_word_embeddings", False),
    ),
    Mutant(
        "another epsilon", "config.json has another epsilon of the norms", LLAMA, mended("rms_norm_eps", 1e-2)
    ),
    Mutant("another activation", "config.json says relu", BERT, mended("hidden_act", "relu")),
    Mutant(
        "another approximation",
        "config.json says the tanh form of GELU",
        BERT,
        mended("hidden_act", "gelu_pytorch_tanh"),
    ),
    Mutant(
        "a scaling lost",
        "config.json lost how positions are scaled",
        SCALED,
        mended("rope_parameters", {"rope_type": "default", "rope_theta": 1e4}),
    ),
    Mutant(
        "a scaling lost",
        "config.json lost what attention is divided by",
        GEMMA2,
        mended("query_pre_attn_scalar", 8),
    ),
    Mutant("another window", "config.json has another sliding window", GEMMA2, mended("sliding_window", 8)),
    *(
        Mutant(
            "another type",
            "config.json names another number type than the source's",
            s,
            in_config("dtype", "bfloat16"),
        )
        for s in (LLAMA, HALF_WEIGHTS)
    ),
    *(
        Mutant(name, "id2label of config.json is in another order", s, spoil)
        for s in (BERT, SHARD_WEIGHTS)
        for name, spoil in (
            ("labels permuted", in_config("id2label", rotated)),
            ("labels permuted in memory", mended("id2label", rotated)),
        )
    ),
    *(
        Mutant("no tokenizer", "no file of the tokenizer was written", s, of_processor(no_tokenizer))
        for s in (BERT, WEIGHTS)
    ),
    *(
        Mutant(
            "another tokenizer",
            "words have other ids in the tokenizer that was written",
            s,
            of_processor(other_tokenizer),
        )
        for s in (BERT, LLAMA, WEIGHTS)
    ),
    Mutant(
        "no special tokens",
        "the tokenizer that was written puts none around a text",
        BERT,
        of_processor(no_template),
    ),
    Mutant(
        "the lowest layer's own weights lost",
        "relative positions went with the layer that had them",
        T5,
        lowest_forgotten,
    ),
    Mutant(
        "a wrong factor",
        "the file is damped by another factor",
        DAMPED,
        _factors(lambda found: {n: (a * 1.01, o) for n, (a, o) in found.items()}),
    ),
    Mutant("folded at the wrong layer", "the file has the layer above damped", DAMPED, _factors(_above)),
    Mutant("not folded", "the file has the weights as they were", DAMPED, _factors(lambda found: {})),
    Mutant("damped off by one", "proof and files damp the layer above", DAMPED, damped_above),
    Mutant("half of a layer damped", "one branch of two is damped", DAMPED, half_folded),
    Mutant(
        "an offset forgotten",
        "norms that add one to their weight are folded without it",
        DAMPED_GEMMA,
        offset_forgotten,
    ),
    *(
        Mutant("no zeros", "the part that goes keeps its weights", s, _silent(lambda found: []))
        for s in (SUBLAYER, SUBLAYER_BERT)
    ),
    Mutant(
        "zeros at the neighbour",
        "the layer above loses its attention",
        SUBLAYER,
        _silent(lambda found: [name.replace(".1.", ".2.") for name in found]),
    ),
    Mutant(
        "the other part",
        "the MLP is silent where attention should be",
        SUBLAYER,
        _silent(lambda found: [name.replace("self_attn.o_proj", "mlp.down_proj") for name in found]),
    ),
)
