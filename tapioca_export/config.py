"""Everything a user can set, once: names, defaults and help that the command line reads off.

Knows nothing about what any of it does.
"""

# ruff: noqa: RUF009  (`_option` is dataclasses.field with what the command line needs to know)

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import ConfigError, UnknownNameError
from .numbering import GRANULARITIES, LayerName, part_of
from .precision import DTYPES, FULL
from .treatments import HALF, HALF_LEVEL, KINDS, LEVELS, Treatment


def _option(default: Any, help_: str, short: str | None = None, metavar: str | None = None) -> Any:
    """Declare a field with what the command line needs to know about it."""
    metadata = {"help": help_, "short": short, "metavar": metavar}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


# Where runs are put side by side, unless another folder is named.
COMPARISON = Path("tapioca-comparison")
OBJECTIVES = ("mean", "worst", "weights")
ALPHAS = (0.0, 0.25, 0.5, 0.75)
# The domain of a target that was given without a name.
UNNAMED = ""
LARGEST_SEED = 2**32 - 1
DOMAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LEAST = {
    0: ("max_drop_layers", "protect_first", "protect_last", "warmup"),
    1: (
        "batch_size", "budget_evaluations", "calibration_samples", "eval_batch_size", "limit", "max_length",
        "max_new_tokens", "num_fewshot", "num_threads", "num_workers", "opset", "shortlist", "width",
    ),
    2: ("iterations", "sequence_length"),
}  # fmt: skip


@dataclass(frozen=True)
class RunConfig:
    """One run. Every stage reads its part; `run.json` records the whole.

    Raises:
        ConfigError: If a number is out of its range.
    """

    model: str = _option(
        "", "Checkpoint folder, a name on the Hugging Face hub, or an ONNX file.", "m", "MODEL"
    )
    task: str = _option("auto", "Task, by Optimum's names; auto reads it off the checkpoint.", "t", "TASK")
    id: Path | None = _option(None, "In-distribution samples.", None, "PATH")
    target: Path | Mapping[str, Path] | None = _option(
        None, "Target-domain samples; NAME=PATH, repeatable, for several domains.", None, "[NAME=]PATH"
    )
    id_report: Path | None = _option(None, "ID rows kept for the report (else --id is split).", None, "PATH")
    target_report: Path | Mapping[str, Path] | None = _option(
        None, "Target rows kept for the report (else --target is split).", None, "[NAME=]PATH"
    )
    objective: str = _option(
        "mean", "What counts of several targets: mean of domains, worst, or weights.", None, "NAME"
    )
    weights: Mapping[str, float] = _option(
        {}, "What each domain counts for, with --objective weights: airline=2,banking=1.", None, "MAP"
    )
    metric: str | None = _option(
        None, "Metric, where a task has several, such as accuracy_norm.", None, "METRIC"
    )
    prompt_template: str | None = _option(
        None, "Jinja template, or a file of one, that makes a decoder's prompt of a row's columns.", None,
        "TEXT",
    )  # fmt: skip
    chat_template: bool = _option(False, "Put prompts through the tokenizer's chat template.")
    few_shot: Path | None = _option(None, "Rows to take solved examples from.", None, "PATH")
    num_fewshot: int | None = _option(None, "Solved examples before each prompt, drawn by the seed.")
    max_new_tokens: int | None = _option(
        None, "Let answers be written, of at most this many tokens, and compare them as texts."
    )
    extract: str | None = _option(
        None, "Regular expression whose first match in what is written is the answer (--max-new-tokens).",
        None, "REGEX",
    )  # fmt: skip
    extract_last: bool = _option(False, "Take the last match of --extract instead of the first.")
    columns: Mapping[str, str] = _option({}, "Column names, such as text=review,label=stars.", None, "MAP")
    output: Path = _option(Path("tapioca-run"), "Output folder.", "o", "DIR")
    criterion: str = _option("tale", "How layers are chosen; see `list`.", None, "NAME")
    epsilon: float | None = _option(
        0.08, "Search goes on down to baseline - epsilon, in units of the metric."
    )
    pick: str = _option("best", "Which point of the search: best, bsba, final, or a number.", None, "PICK")
    granularity: str = _option(
        "block",
        "What is dropped one by one: block (a layer), or sublayer (its attention, its MLP).",
        None,
        "NAME",
    )
    max_drop_layers: int | None = _option(None, "Drop at most this many layers, or sublayers.")
    protect_first: int = _option(0, "Never drop this many first layers (of each stack).")
    protect_last: int = _option(0, "Never drop this many last layers (of each stack).")
    alphas: tuple[float, ...] = _option(
        ALPHAS,
        "What --criterion damp multiplies a layer's branches by; 0, which drops it, is added.",
        None,
        "NUMBERS",
    )
    search: str = _option(
        "greedy", "Way through the sets of layers: greedy (exact), racing, beam, exhaustive.", None, "NAME"
    )
    full_scores: bool = _option(False, "Score every candidate on all rows, also those that have lost.")
    confidence: float = _option(0.99, "Confidence of --search racing.")
    width: int = _option(3, "Sets kept a round by --search beam.")
    shortlist: int = _option(5, "Layers that tapioca proposes a round, with --criterion tapioca+tale.")
    budget_seconds: float | None = _option(None, "End the search after this time with the best so far.")
    budget_evaluations: int | None = _option(None, "End the search after this many candidates.")
    engine: str = _option("local", "Where candidates are scored: local, or ray.", None, "NAME")
    num_workers: int = _option(1, "Workers of --engine ray.")
    ray_address: str | None = _option(None, "Address of a running Ray cluster.", None, "ADDRESS")
    tie_break: str = _option(
        "index", "Among equals, drop the lowest index, or the lowest loss.", None, "RULE"
    )
    select_on: str = _option("target", "Rows that drive the search: target or id.", None, "ROWS")
    drop: tuple[LayerName, ...] = _option(
        (), "Layers to drop, 0-based, such as 3,7; of several stacks, encoder:3,decoder:7; a part of one is "
        "4.attention or 4.mlp.", None, "LAYERS",
    )  # fmt: skip
    format: tuple[str, ...] = _option(("onnx",), "Export format; repeatable.", None, "FORMAT")
    opset: int | None = _option(None, "ONNX opset (default: the exporter's).")
    target_ort: str | None = _option(
        None, "Write ONNX that this version of ONNX Runtime reads, such as 1.17.", None, "X.Y"
    )
    dtype: str = _option(FULL, f"Precision of exported files: {', '.join(DTYPES)}.", None, "DTYPE")
    atol: float | None = _option(
        None,
        "Largest difference of any logit between file and PyTorch in fp32 (default: 1e-4; in half precision, "
        "twice PyTorch's own).",
    )
    optimize: str | None = _option(
        None,
        f"Optimise ONNX files for ONNX Runtime: {', '.join(LEVELS)}, as Optimum has them.",
        None,
        "LEVEL",
    )
    quantize: str | None = _option(
        None, f"Quantise the weights of ONNX files: {' or '.join(KINDS)}.", None, "KIND"
    )
    per_channel: bool = _option(False, "Give each output channel a scale of its own, with --quantize int8.")
    calibration_samples: int | None = _option(
        None,
        "ID rows to measure ranges of activations on, with --quantize int8 (default: ranges of each input).",
    )
    max_drop: float = _option(
        0.01,
        "Most of the metric, in its unit, that --optimize and --quantize may cost on labelled rows.",
    )
    provider: tuple[str, ...] = _option(
        ("cpu",), "ONNX Runtime provider to time on; repeatable.", None, "NAME"
    )
    device: str = _option(
        "cpu",
        "PyTorch device for profile and search; auto spreads the layers over all there are.",
        None,
        "DEVICE",
    )
    max_memory: str | None = _option(
        None,
        "With --device auto: most of the machine's memory for weights, such as 8GB; other layers are read "
        "from disk when they run (default: what is free).",
        None,
        "SIZE",
    )
    batch_size: tuple[int, ...] = _option((1, 8), "Batch size to time; repeatable.")
    sequence_length: tuple[int, ...] = _option((), "Sequence length to time; repeatable.")
    eval_batch_size: int = _option(32, "Rows a forward in profile and search.")
    max_length: int | None = _option(None, "Cut inputs to this many tokens (default: the model's limit).")
    limit: int | None = _option(None, "At most this many rows a role; for trying out only.")
    num_threads: int | None = _option(None, "Threads of PyTorch and ONNX Runtime (default: all cores).")
    warmup: int = _option(5, "Untimed runs before timing.")
    iterations: int = _option(30, "Timed rounds a shape.")
    tune: bool = _option(
        False, "Search for ONNX Runtime's fastest session settings, and time with them (ort_session.json)."
    )
    tune_seconds: float = _option(120.0, "How long --tune may search.")
    seed: int = _option(0, "Seed of splits, resampling and random choices.")
    drop_leaks: bool = _option(False, "Remove rows that stand in two roles instead of refusing them.")
    redact: bool = _option(False, "Leave what sample rows hold out of benchmark and report.")
    trust_remote_code: bool = _option(
        False, "Run code that comes with the model, or is in a pt2 or TorchScript file."
    )
    local_files_only: bool = _option(False, "Never ask the hub.")
    overwrite: bool = _option(False, "Replace the output folder if it holds something.")

    @property
    def has_sublayers(self) -> bool:
        """Tell whether attention and MLP of a layer may go one without the other."""
        return self.granularity == "sublayer" or any(map(part_of, self.drop))

    def __post_init__(self) -> None:
        """Refuse values out of range before any work."""
        for least, names in LEAST.items():
            for name in names:
                value = getattr(self, name)
                for number in value if isinstance(value, tuple) else (value,):
                    if number is not None and number < least:
                        option = "--" + name.replace("_", "-")
                        raise ConfigError(f"{option} {number} must be at least {least}.")
        if (self.few_shot is None) != (self.num_fewshot is None):
            raise ConfigError(
                "--few-shot and --num-fewshot go together.",
                "Such as --few-shot solved.jsonl --num-fewshot 5.",
            )
        self._check_extract()
        for alpha in self.alphas:
            if not (math.isfinite(alpha) and alpha >= 0):
                raise ConfigError(f"--alphas {alpha} must be a number from 0 up.", "Such as 0,0.25,0.5,0.75.")
        # 1 would leave the layer as it is.
        object.__setattr__(self, "alphas", tuple(sorted({0.0, *map(float, self.alphas)} - {1.0})))
        self._check_targets()
        if self.granularity not in GRANULARITIES:
            raise UnknownNameError("granularity", self.granularity, GRANULARITIES)
        if self.has_sublayers and (self.criterion == "damp" or self.alphas != ALPHAS):
            raise ConfigError(
                "Only whole layers are damped, not attention or MLP alone.",
                "Use --granularity block, or leave out --criterion damp and --alphas.",
            )
        self._check_files()
        if not (math.isfinite(self.tune_seconds) and self.tune_seconds > 0):
            raise ConfigError(f"--tune-seconds {self.tune_seconds} must be a number above 0.")
        if self.max_memory is not None and self.device != "auto":
            raise ConfigError(
                f"--max-memory has no meaning for --device {self.device}.", "Add --device auto."
            )
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ConfigError(f"--seed {self.seed} must be from 0 to {LARGEST_SEED}.")
        for name, allowed in (("tie_break", ("index", "loss")), ("select_on", ("target", "id"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"--{name.replace('_', '-')} {getattr(self, name)!r} must be {' or '.join(allowed)}."
                )

    @property
    def treatment(self) -> Treatment:
        """How ONNX files are optimised and quantised."""
        return Treatment(self.optimize, self.quantize, self.per_channel, self.calibration_samples)

    def _check_files(self) -> None:
        """Refuse files that cannot be written; O4 is in half precision."""
        if self.dtype not in DTYPES:
            raise UnknownNameError("dtype", self.dtype, DTYPES)
        if self.optimize == HALF_LEVEL and self.dtype == FULL:
            object.__setattr__(self, "dtype", HALF)
        self.treatment.check_dtype(self.dtype)
        if self.treatment and self.target_ort is not None:
            raise ConfigError(
                "--optimize and --quantize write operators that an old ONNX Runtime may not know.",
                "Leave out --target-ort, or optimise with that version.",
            )
        if self.atol is not None and not (math.isfinite(self.atol) and self.atol > 0):
            raise ConfigError(f"--atol {self.atol} must be a number above 0.")
        if not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise ConfigError(f"--max-drop {self.max_drop} must be a number from 0 up.")

    def _check_targets(self) -> None:
        """Refuse domains that cannot be told apart, and an objective that does not fit them."""
        names = list(self.target) if isinstance(self.target, Mapping) else []
        reported = list(self.target_report) if isinstance(self.target_report, Mapping) else []
        for name in names:
            if not DOMAIN.fullmatch(name):
                raise ConfigError(
                    f"--target {name!r} is no name of a domain.",
                    "Letters, digits, dots, dashes and underscores: --target airline=a.jsonl.",
                )
        if self.target_report is not None and (bool(names) != bool(reported) or set(reported) - set(names)):
            raise ConfigError(
                f"--target names {_listed(names)}, --target-report {_listed(reported)}.",
                "Name the report rows of a domain as the domain: --target-report airline=more.jsonl.",
            )
        seen: dict[Path, str] = {}
        for option, given in (("--target", self.target), ("--target-report", self.target_report)):
            for name, path in given.items() if isinstance(given, Mapping) else ():
                first = seen.setdefault(Path(path).resolve(), f"{option} {name}")
                if first != f"{option} {name}":
                    raise ConfigError(
                        f"{first} and {option} {name} are the same file, {path}.", "Give each its own rows."
                    )
        if self.objective not in OBJECTIVES:
            raise UnknownNameError("objective", self.objective, OBJECTIVES)
        if self.objective != "mean" and not names:
            raise ConfigError(
                f"--objective {self.objective} is for several targets, and none is named.",
                "Name them: --target airline=a.jsonl --target banking=b.jsonl.",
            )
        self._check_weights(names)

    def _check_weights(self, names: Sequence[str]) -> None:
        """Refuse weights that are not those of the domains."""
        if self.objective != "weights":
            if self.weights:
                raise ConfigError(
                    f"--weights have no say in --objective {self.objective}.", "Add --objective weights."
                )
            return
        example = f"Such as --weights {','.join(f'{name}=1' for name in names)}."
        for name in names:
            if name not in self.weights:
                raise ConfigError(f"--weights has none for domain {name}.", example)
        for name, weight in self.weights.items():
            if name not in names:
                raise UnknownNameError("domain in --weights", name, names)
            if not (math.isfinite(weight) and weight >= 0):
                raise ConfigError(f"--weights {name}={weight} must be a number of at least 0.", example)
        if not any(self.weights.values()):
            raise ConfigError("--weights are all 0: no domain would count.", example)

    def files(self, *settings: str) -> list[tuple[str, str, Path]]:
        """Return the files given for these settings: setting, domain (empty where none is named), path."""
        found: list[tuple[str, str, Path]] = []
        for setting in settings:
            given = getattr(self, setting)
            if isinstance(given, Mapping):
                found += [(setting, domain, Path(path)) for domain, path in given.items()]
            elif given is not None:
                found.append((setting, UNNAMED, given))
        return found

    def _check_extract(self) -> None:
        """Refuse a rule for answers that nothing is written for, or that is none."""
        if self.extract is None:
            if self.extract_last:
                raise ConfigError("--extract-last has no meaning without --extract.", "Give both.")
            return
        if self.max_new_tokens is None:
            raise ConfigError(
                "--extract finds answers in what a model writes, and nothing is written.",
                "Add --max-new-tokens, such as --max-new-tokens 256.",
            )
        try:
            re.compile(self.extract)
        except (re.error, OverflowError, RecursionError) as error:  # repeated, or nested, beyond all bounds
            raise ConfigError(f"--extract {self.extract!r} is no regular expression: {error}.") from error


Scaling = Literal["block", "branches"]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "no domain"


@dataclass(frozen=True)
class Doses:
    """How far and how often `intervene` goes.

    Args:
        alphas: What the layers' updates are multiplied by; 0 (dropped) and 1 (intact) are added.
        draws: Random sets of other layers to drop.
        epsilon: How far the ID metric may move and be called flat, in its units.
        scaling: "block" multiplies what a layer adds as a whole, "branches" what each of its branches adds,
            which is what `prune --scale` keeps.
        by_layer: Whether each of several layers is scaled alone, too.

    Raises:
        ConfigError: If a number is out of its range.
    """

    alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    draws: int = 50
    epsilon: float = 0.01
    scaling: Scaling = "block"
    by_layer: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be done, and put the alphas in order."""
        for alpha in self.alphas:
            if not (math.isfinite(alpha) and alpha >= 0):
                raise ConfigError(f"--alphas {alpha} must be a number from 0 up.", "Such as 0,0.5,1,1.5.")
        if self.draws < 0:
            raise ConfigError(f"--draws {self.draws} must be at least 0.")
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ConfigError(f"--epsilon {self.epsilon} must be a number above 0.")
        if self.scaling not in get_args(Scaling):
            raise UnknownNameError("scaling", self.scaling, get_args(Scaling))
        object.__setattr__(self, "alphas", tuple(sorted({0.0, 1.0, *map(float, self.alphas)})))
