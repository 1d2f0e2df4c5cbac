"""Checkpoint folder or hub name -> model in memory; foreign code runs only when it is trusted."""

from __future__ import annotations

import contextlib
import copy
import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from .. import polynomial  # registers the embedded example with transformers
from ..errors import ConfigError, LoadError, UnknownNameError, UnsupportedModelError, first_line
from ..external import refuse_link_out
from ..graphs import is_graph
from ..tasks import TASKS, Processor, ProcessorOptions, Task, answering
from ..tensors import to_tensors
from .configs import refuse_types
from .graph_network import load_graph
from .loaded import SPREAD, LoadedModel, LoadOptions, answer_of
from .shards import read_weights
from .sizes import refuse_numbers, refuse_sizes
from .stacks import in_order, prunable_stacks
from .sublayers import with_branches
from .surgery import refuse_dependent_layers

# What transformers and PyTorch raise over configs and weights that make no sense; they have no common base.
_MALFORMED = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, ImportError,
    SafetensorError, StrictDataclassError,
)  # fmt: skip

# Of what a tokenizer reads, what is written again as it is.
COPIED_AS_TEXT = ("chat_template*", "additional_chat_templates/*", "vocab.txt", "merges.txt")

logger = logging.getLogger(__name__)


def load_model(source: str | Path, task: str = "auto", options: LoadOptions | None = None) -> LoadedModel:
    """Load a checkpoint with its tokenizer, in float32, and find its layers.

    Args:
        source: A local folder, a name on the Hugging Face hub, or an ONNX file with config and tokenizer
            beside it, which ONNX Runtime runs.
        task: A name of `TASKS`, or "auto" to infer it from the checkpoint's architecture.
        options: Safety switches, device, longest input.

    Raises:
        LoadError: If there is no readable safetensors checkpoint or no tokenizer.
        ConfigError: If the task cannot be inferred or does not fit the model, or the memory is no size.
        UnsupportedModelError: If the layers cannot be told, or are not independent; or their branches cannot,
            where they may go alone.
    """
    options = options or LoadOptions()
    logger.info("Loading %s", Path(source).name or source)
    if is_graph(source):
        config = load_config(source, options)
        chosen = find_task(config, task, options)
        return load_graph(
            Path(source), chosen, load_processor(chosen, source, config, options), config, options
        )
    config, chosen = _config_and_task(source, task, options)
    spreading = _spreading(options)
    try:
        network, info = auto_class(chosen).from_pretrained(
            str(source),
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=options.trust_remote_code,
            local_files_only=options.local_files_only,
            output_loading_info=True,
            **spreading,
        )
    except _MALFORMED as error:
        raise LoadError(
            f"Cannot load a {chosen.name} model from {source}: {first_line(error)}",
            "Name a folder with config.json and safetensors weights of a fine-tuned model.",
        ) from error
    if missing := sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"])):
        raise LoadError(
            f"{source} has no weights for {missing[0]} ({len(missing)} such): it was not trained for "
            f"{chosen.name}.",
            "Name a checkpoint with a trained head, or another --task.",
        )
    processor = load_processor(chosen, source, config, options)
    # A network that accelerate has spread stays where it is.
    network = network.eval() if options.device == SPREAD else aligned(network).to(options.device).eval()
    stacks = prunable_stacks(network)
    if len(stacks) > 1:
        example = chosen.examples(processor)[0]
        stacks = in_order(network, stacks, lambda: answer_of(network, chosen, example))
    model = LoadedModel(network, chosen, processor, str(source), stacks, options.trust_remote_code)
    refuse_dependent_layers(model)
    return with_branches(model) if options.granularity == "sublayer" else model


def _spreading(options: LoadOptions) -> dict[str, Any]:
    """Return what tells transformers to spread a model: over GPUs, then memory, then disk.

    Raises:
        ConfigError: If the memory is no size.
    """
    if options.device != SPREAD:
        return {}
    if options.max_memory is None:
        return {"device_map": "auto"}
    from accelerate.utils import convert_file_size_to_int, get_max_memory

    try:
        most = convert_file_size_to_int(options.max_memory.replace("b", "B"))  # to accelerate, b are bits
    except ValueError as error:
        raise ConfigError(f"--max-memory {options.max_memory!r} is no size.", "Such as 8GB.") from error
    return {"device_map": "auto", "max_memory": {**get_max_memory(), "cpu": most}}


def outline_model(source: str | Path, task: str = "auto", options: LoadOptions | None = None) -> LoadedModel:
    """Build a checkpoint's network without its weights: names and shapes, and nothing that computes.

    The files are all here afterwards, and only the headers of those with weights were read. An ONNX file is
    opened: its weights stay in it.

    Args:
        source: A local folder, or a name on the Hugging Face hub.
        task: A name of `TASKS`, or "auto" to infer it from the checkpoint's architecture.
        options: Safety switches; the device is of no matter.

    Raises:
        LoadError: If there is no config, no tokenizer, no such network, or the weights are not whole.
        ConfigError: If the task cannot be inferred or does not fit the model.
        UnsupportedModelError: If the layers cannot be told, or are not independent.
    """
    from accelerate import init_empty_weights

    if is_graph(source):
        return load_model(source, task, options)
    options = options or LoadOptions()
    config, chosen = _config_and_task(source, task, options)
    try:
        with init_empty_weights(include_buffers=False):
            network = auto_class(chosen).from_config(config, trust_remote_code=options.trust_remote_code)
        network.tie_weights()  # emptying them took them apart
    except _MALFORMED as error:
        raise LoadError(f"Cannot build a {chosen.name} model from {source}: {first_line(error)}") from error
    processor = load_processor(chosen, source, config, options)
    stacks = prunable_stacks(network.eval())
    if len(stacks) > 1:
        empty, example = copy.deepcopy(network).to("meta"), chosen.examples(processor)[0]
        # Names tell layers apart whatever the order, where a forward without values cannot show it.
        with contextlib.suppress(RuntimeError, NotImplementedError):
            stacks = in_order(empty, stacks, lambda: empty(**to_tensors(example, "meta")))
    model = LoadedModel(network, chosen, processor, str(source), stacks, options.trust_remote_code)
    refuse_dependent_layers(model)
    return model


def _config_and_task(source: str | Path, task: str, options: LoadOptions) -> tuple[Any, Task]:
    """Refuse what can be refused before weights are read: of them, headers are."""
    config = load_config(source, options)
    chosen = find_task(config, task, options)
    _refuse_pickled_weights(source)
    weights = read_weights(source, local_files_only=options.local_files_only)
    raw, _ = transformers.PreTrainedConfig.get_config_dict(str(source), local_files_only=True)
    refuse_sizes(raw, weights, source)
    return config, chosen


def load_config(source: str | Path, options: LoadOptions) -> Any:
    """Load a checkpoint's config.

    Raises:
        LoadError: If there is none, or it asks for custom code that is not trusted.
        UnsupportedModelError: If it is an adapter, or its weights are quantized.
    """
    source = _settings_folder(source)
    folder = Path(source)
    _refuse_adapter(source, options)
    if folder.exists() and not (folder / "config.json").is_file():
        raise LoadError(f"{source} has no config.json.", "Name a folder written by save_pretrained.")
    if not folder.exists() and (folder.is_absolute() or len(folder.parts) > 2 or options.local_files_only):
        raise LoadError(f"Model folder {source} does not exist.", "Check -m/--model.")
    try:
        # Read raw first: transformers would ask at the terminal whether to trust custom code.
        raw, _ = transformers.PreTrainedConfig.get_config_dict(
            str(source), local_files_only=options.local_files_only
        )
        if "auto_map" in raw and not options.trust_remote_code:
            raise LoadError(
                f"{source} needs custom code ({', '.join(map(str, raw['auto_map'].values()))}).",
                "Read it, then add --trust-remote-code to run it.",
            )
        refuse_numbers(raw, source)
        config = transformers.AutoConfig.from_pretrained(
            str(source),
            trust_remote_code=options.trust_remote_code,
            local_files_only=options.local_files_only,
        )
    except _MALFORMED as error:
        if not folder.exists():
            raise LoadError(
                f"{source} is not a folder here, and the hub does not give it: {first_line(error)}",
                "Check -m/--model.",
            ) from error
        raise LoadError(f"Cannot load the config of {source}: {first_line(error)}") from error
    refuse_types(config, source)
    if method := getattr(config, "quantization_config", None):
        name = method.get("quant_method", "unnamed") if isinstance(method, dict) else method
        raise UnsupportedModelError(
            f"The weights of {source} are quantized ({name}).",
            "Start from the checkpoint that is not, and quantize what comes out.",
        )
    return config


def _settings_folder(source: str | Path) -> str | Path:
    """Return where a model's config and tokenizer are; of an ONNX file, they stand beside it.

    Raises:
        LoadError: If there is no such file, or no config beside it.
    """
    if not is_graph(source):
        return source
    file = Path(source)
    if not file.is_file():
        raise LoadError(f"There is no file {file}.", "Check -m/--model.")
    if not (file.parent / "config.json").is_file():
        raise LoadError(
            f"There is no config.json beside {file}.", "Put the model's config and tokenizer beside it."
        )
    return file.parent


def _refuse_adapter(source: str | Path, options: LoadOptions) -> None:
    """Refuse a folder or hub name that holds an adapter: transformers would put it on a model unasked.

    Raises:
        UnsupportedModelError: If there is one.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        found = find_adapter_config_file(str(source), local_files_only=options.local_files_only)
    except (OSError, ValueError):  # there is no such model, which is said when its config is read
        return
    if found:
        raise UnsupportedModelError(
            f"{source} holds an adapter (adapter_config.json).",
            "Merge it into its model (merge_and_unload of peft), and save that.",
        )


def load_processor(task: Task, source: str | Path, config: Any, options: LoadOptions) -> Processor:
    """Load what encodes samples for a checkpoint or export folder; no weights are read.

    Raises:
        ConfigError: If prompts are to be made for a task that has none.
    """
    if options.prompting.makes_prompts and not task.has_prompts:
        raise ConfigError(
            f"Task {task.name} has no prompts for a template or solved examples.",
            "Leave out --prompt-template, --chat-template and --few-shot.",
        )
    folder = Path(_settings_folder(source))
    for name in COPIED_AS_TEXT:
        for path in folder.glob(name):
            refuse_link_out(path, folder / "config.json")
    return task.load_processor(
        str(folder),
        config,
        ProcessorOptions(
            options.max_length, options.trust_remote_code, options.local_files_only, options.prompting
        ),
    )


def find_task(config: Any, name: str, options: LoadOptions | None = None) -> Task:
    """Return the task of that name ("auto": the architecture's) as the model with this config does it.

    Args:
        config: The model's config.
        name: A name of `TASKS`, or "auto".
        options: The metric, one of the task's (default: its first), and whether answers are written.

    Raises:
        ConfigError: If the task cannot be inferred, the model's head does not do it, it has no such metric,
            or no answers to write.
    """
    options = options or LoadOptions()
    task = TASKS[infer_task(config) if name == "auto" else name].for_model(config)
    known = task.metrics()
    if options.metric is not None and options.metric not in known:
        raise UnknownNameError(f"metric of {task.name}", options.metric, known)
    return answering(task if options.metric is None else known[options.metric], options.prompting)


def infer_task(config: Any) -> str:
    """Infer the task from the checkpoint's architecture, by Optimum's rules.

    Raises:
        ConfigError: If Optimum cannot tell, or the task is not one of ours.
    """
    from optimum.exporters.tasks import TasksManager
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    )

    architecture = (config.architectures or ["none"])[0]
    if config.model_type == polynomial.PolynomialConfig.model_type:
        return "polynomial-regression"
    model_class = getattr(transformers, architecture, None)
    try:
        task = TasksManager.infer_task_from_model(model_class) if model_class else None
    except ValueError:  # it does not know classes that share their place in an auto class
        known = (name for name in TASKS if architecture in _classes(TASKS[name]))
        task = next(known, None)
    # The class that writes a BART's answers can also fill masks, which is what Optimum says of it.
    if task == "fill-mask" and architecture in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values():
        task = "text2text-generation"
    # A whole CLIP gives features as well; what it is made for is to hold images against texts.
    held_together = MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES.values()
    if task == "feature-extraction" and architecture in held_together:
        task = "zero-shot-image-classification"
    if task not in TASKS:
        raise ConfigError(
            f"The task of architecture {architecture} is {task or 'not known'}, which is not supported.",
            f"Name the task with -t/--task: {', '.join(TASKS)}.",
        )
    return str(task)


def auto_class(task: Task) -> Any:
    """Return the stock transformers auto class of a task, as Optimum names it."""
    from optimum.exporters.tasks import TasksManager

    return TasksManager.get_model_class_for_task(task.optimum_task, model_class_name=task.model_class)


def _classes(task: Task) -> set[str]:
    """Return the names of the classes that a task's auto class chooses from."""
    found = auto_class(task)._model_mapping._model_mapping.values()
    return {name for names in found for name in ((names,) if isinstance(names, str) else names)}


def aligned(network: Any) -> Any:
    """Move every weight to memory of PyTorch's own, in place.

    Weights mapped from a file start where the file has them, and matrix products round differently
    at other alignments: two files with equal weights would not compute equal logits.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    return network


def _refuse_pickled_weights(source: str | Path) -> None:
    """Refuse a folder whose only weights are pickles: loading one runs code from the file."""
    folder = Path(source)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickled:
        raise LoadError(
            f"{source} has pickled weights only ({pickled[0]}); they are never loaded, as that runs code.",
            "Convert them to model.safetensors (save_pretrained of a current transformers does).",
        )
    raise LoadError(f"{source} has no *.safetensors weights.")
