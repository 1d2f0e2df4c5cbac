"""The commands: each builds a configuration, calls one function of the library and prints."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import tapioca_export as library

from ..config import RunConfig
from ..errors import ConfigError, TapiocaError
from ..exhaustion import exhausted
from ..numbering import LayerName, whole_layers
from ..registry import Table
from ..stopping import stopping_over_errors
from .config_files import in_config_file
from .logs import is_verbose, one_line, show_logs
from .options import FIELDS, VARIANTS, _scales, comparing, options, planning
from .results import (
    counts,
    damped,
    join,
    show,
    show_comparison,
    show_plan,
    show_report,
    show_selection,
    table_text,
    wrapped,
)

LOADING = (
    "model", "task", "max_length", "trust_remote_code", "local_files_only", "num_threads", "seed",
)  # fmt: skip
SAMPLE_FILES = ("id", "target", "id_report", "target_report")
SAMPLES = (*SAMPLE_FILES, "objective", "weights", "columns", "limit", "drop_leaks")
PROMPTS = (
    "metric", "prompt_template", "chat_template", "few_shot", "num_fewshot", "max_new_tokens", "extract",
    "extract_last",
)  # fmt: skip
OUTPUT = ("output", "overwrite")
PROBING = ("device", "max_memory", "eval_batch_size")
SEARCH = (
    "criterion", "alphas", "search", "epsilon", "pick", "granularity", "max_drop_layers", "protect_first",
    "protect_last", "tie_break", "select_on", "drop", "full_scores", "confidence", "width", "shortlist",
    "budget_seconds", "budget_evaluations", "engine", "num_workers", "ray_address",
)  # fmt: skip
EXPORT = (
    "format", "opset", "target_ort", "dtype", "atol", "optimize", "quantize", "per_channel",
    "calibration_samples", "max_drop",
)  # fmt: skip
TIMING = (
    "provider",
    "batch_size",
    "sequence_length",
    "warmup",
    "iterations",
    "tune",
    "tune_seconds",
    "redact",
)


class TapiocaGroup(click.Group):
    """Prints what a user can mend as one line and a hint; anything else is our bug, and shows."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command: exit code 1 for a `TapiocaError`, 2 for wrong usage."""
        try:
            with stopping_over_errors():
                return super().invoke(ctx)
        except TapiocaError as error:
            _fail(ctx, 1, error.message, error.hint or _see_help(ctx))
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            _fail(ctx, 2, error.format_message(), _see_help(ctx))
        except Exception as error:  # what libraries make of a full disk or memory
            if (found := exhausted(error)) is None:
                raise
            _fail(ctx, 1, found.message, found.hint or _see_help(ctx))


def _see_help(ctx: click.Context) -> str:
    """Name the page that says what the command takes."""
    command = ctx.invoked_subcommand if ctx.invoked_subcommand in main.commands else None
    return f"See {' '.join(filter(None, (ctx.command_path, command)))} --help."


def _fail(ctx: click.Context, code: int, message: str, hint: str) -> None:
    """Print one line and a hint, and end."""
    click.echo(f"Error: {one_line(in_config_file(ctx.meta, message))}", err=True)
    click.echo(f"Hint: {one_line(hint)}", err=True)
    ctx.exit(code)


def _config(flags: Mapping[str, Any], *, loads: bool = True, fills: bool = True) -> RunConfig:
    """Build the configuration from a command's flags; the library refuses what can be refused at once.

    Args:
        flags: The command's.
        loads: Whether libraries will load a model, and are to be silent about it.
        fills: Whether the output is a folder that the command fills; it is looked at before libraries load.
    """
    config = RunConfig(**{name: value for name, value in flags.items() if name in FIELDS})
    if fills:
        from ..artifacts import check_output

        check_output(config.output, overwrite=config.overwrite)
    if loads:
        _prepare_libraries()
    return config


def _prepare_libraries() -> None:
    """Silence what transformers prints on its own, and keep idle threads from taking busy cores."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import huggingface_hub
    import transformers

    transformers.logging.disable_progress_bar()
    if not is_verbose():
        huggingface_hub.logging.set_verbosity_error()  # or every retry is a line before ours
        transformers.logging.set_verbosity_error()


# --- commands -------------------------------------------------------------------------------


@click.group(cls=TapiocaGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(library.__version__, package_name="tapioca-export")
def main() -> None:
    """Remove the layers that hurt a transformer on its target domain, and prove what that does."""
    show_logs(logging.INFO)


@main.command()
@options(*OUTPUT, "criterion", "epsilon", "pick", "max_drop_layers", "format", "num_threads", "seed")
def demo(as_json: bool, quiet: bool, **flags: Any) -> None:
    """Run the whole job on an embedded example: no model, data or network needed."""
    _run_and_show("demo", flags, as_json, quiet)


@main.command()
@options(*LOADING, *SAMPLES, *PROMPTS, *OUTPUT, *PROBING, *SEARCH, *EXPORT, *TIMING)
@planning
def run(dry_run: bool, as_json: bool, quiet: bool, **flags: Any) -> None:
    """Profile, select, prune, export, benchmark and report."""
    if dry_run:
        show_plan(library.plan(_config(flags), "run"), as_json, quiet)
    else:
        _run_and_show("run", flags, as_json, quiet)


def _run_and_show(verb: str, flags: Mapping[str, Any], as_json: bool, quiet: bool) -> None:
    config = _config(flags)
    show_report(getattr(library, verb)(config), config.output, as_json, quiet)


@main.command()
@options(*LOADING, *SAMPLES, *PROMPTS, *OUTPUT, *PROBING, "drop")
def profile(as_json: bool, quiet: bool, **flags: Any) -> None:
    """Profile the residual stream on ID and target samples, layer by layer."""
    config = _config(flags)

    result = library.profile(config, config.drop)

    def text() -> str:
        from ..reporting import layer_table

        lines = [table_text(layer_table(result))]
        mean, floor = result.deviation.mean, result.deviation.noise_floor.mean
        lines.append(f"Mean deviation {mean:.3f}; two halves of ID differ by up to {floor:.3f}.")
        if result.deviation_removed is not None:
            lines.append(f"Dropping {join(result.drop)} removes {result.deviation_removed:.0%} of it.")
        if result.targets:
            from ..reporting import domain_table

            table = domain_table(result)
            lines += [f"{table.caption}:", table_text(table)]
        return "\n".join(lines)

    show(result, as_json, quiet, text)


@main.command()
@options(*LOADING, *SAMPLES, *PROMPTS, *OUTPUT, *PROBING, *SEARCH)
@comparing
@planning
def select(compare: tuple[str, ...] | None, dry_run: bool, as_json: bool, quiet: bool, **flags: Any) -> None:
    """Choose layers to drop, or compare criteria that choose them."""
    if compare is not None:
        _refuse_beside_compare("criterion", "epsilon", "pick", "dry_run")
    config = _config(flags)

    if dry_run:
        show_plan(library.plan(config), as_json, quiet)
    elif compare is None:
        show_selection(library.select(config), as_json, quiet)
    else:
        show_comparison(library.compare(config, compare), as_json, quiet)


def _refuse_beside_compare(*names: str) -> None:
    """Refuse flags that would have no say; a config file may serve other commands too.

    Raises:
        ConfigError: Naming the first of them.
    """
    source_of = click.get_current_context().get_parameter_source
    for name in names:
        if source_of(name) is click.core.ParameterSource.COMMANDLINE:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} has no say in --compare.", "Give one of them.")


@main.command()
@click.argument("file", required=False)
@click.option("-m", "--model", help="Model folder or hub name; instead of FILE.")
@options(*(n for n in LOADING if n != "model"), "id", "target", "columns", *PROMPTS, *OUTPUT, "drop", "atol")
@click.option(
    "--scale", metavar="SCALES", callback=_scales, default=None, type=click.UNPROCESSED,
    help="Layers to damp, each with the factor of what its branches add, such as 4:0.5,7:0.25.",
)  # fmt: skip
@click.option("--selection", type=click.Path(path_type=Path), help="A selection.json to replay.")
@click.option(
    "--proof",
    type=click.Choice(["logits", "weights"]),
    default="logits",
    show_default=True,
    help="Compare logits in a fresh process; or names, shapes and bytes, loading no weights.",
)
def prune(
    file: str | None,
    as_json: bool,
    quiet: bool,
    selection: Path | None,
    scale: dict[LayerName, float],
    proof: Any,
    **flags: Any,
) -> None:
    """Remove or damp layers of a checkpoint, or remove them from an ONNX FILE, and prove what is left."""
    if (file is None) == (flags["model"] is None):
        raise click.UsageError("Give either an ONNX FILE or --model.")
    if file is not None and Path(file).suffix.lower() != ".onnx":
        raise click.UsageError(f"{file} is no ONNX file by its name; a checkpoint is named by --model.")
    config = _config({**flags, "model": file or flags["model"]}, loads=file is None)
    from ..artifacts import Selection, read

    chosen = read(selection, Selection) if selection else None

    result = library.prune(config, chosen, proof, scale)
    left = result.num_layers - len(whole_layers(result.drop))
    text = f"{config.output}: {left} of {result.num_layers} layers (dropped: {join(result.drop)})."
    if result.damp:
        text += f"\nDamped: {damped(result)}."
    text += f"\n{result.note}" if result.note else ""
    show(result, as_json, quiet, lambda: text)


@main.command()
@options(*LOADING, "id", "target", "columns", *PROMPTS, *OUTPUT, *EXPORT)
@VARIANTS
def export(variants: str | None, as_json: bool, quiet: bool, **flags: Any) -> None:
    """Export a checkpoint, and prove on your samples that the file computes the same."""
    config = _config(flags)
    results = (
        library.export_variants(config, variants.split(","))
        if variants is not None
        else library.export(config)
    )

    def text() -> str:
        from ..reporting import export_lines

        folders = {name: config.output / name if others else config.output for name in results}
        return "\n".join(line for name in results for line in export_lines(folders[name], results[name]))

    one, *others = results.values()
    show(results if others else one, as_json, quiet, text)


@main.command()
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("pruned", type=click.Path(path_type=Path))
@options(*SAMPLES, *OUTPUT, *(name for name in LOADING if name not in ("model", "task")), *TIMING)
def benchmark(original: Path, pruned: Path, as_json: bool, quiet: bool, **flags: Any) -> None:
    """Compare two export folders: accuracy on report rows, latency, memory, size."""
    config = _config(flags)
    result = library.benchmark(original, pruned, config)

    def text() -> str:
        from ..reporting import about_medians, about_sessions, setting_text

        lines = []
        for role, row in result.rows.items():
            low, high = row.interval
            lines.append(
                f"{role}: {row.metric} {row.original:.4g} -> {row.pruned:.4g} "
                f"(difference {row.difference:+.4g}, 95 % interval {low:+.4g} to {high:+.4g}, n={row.n})"
            )
            if row.invalid is not None:
                lines.append(f"{role}: invalid answers {counts(row.invalid)} of {row.n}")
        for cell in result.latency:
            low, high = cell.speedup.interval
            lines.append(
                f"{setting_text(cell)}: "
                f"{cell.speedup.median:.2f}x the speed ({low:.2f} to {high:.2f}; "
                f"ideal {cell.ideal_speedup:.2f})"
            )
        lines += [*about_medians(result), *about_sessions(result), *result.skipped]
        return "\n".join(lines)

    show(result, as_json, quiet, text)


@main.command("list")
def list_() -> None:
    """List criteria, searches, tasks, formats, runtimes and engines."""
    _prepare_libraries()
    from ..benchmarking import RUNTIMES
    from ..engines import ENGINES
    from ..exporting import FORMATS
    from ..selection import CRITERIA, SEARCHES
    from ..tasks import TASKS

    tables: dict[str, Table[Any]] = {
        "criteria": CRITERIA,
        "searches": SEARCHES,
        "tasks": TASKS,
        "formats": FORMATS,
        "runtimes": RUNTIMES,
        "engines": ENGINES,
    }
    longest = max(len(name) for table in tables.values() for name in table)
    for title, table in tables.items():
        click.echo(f"{title}:")
        for name, entry in table.items():
            text = getattr(entry, "help", None) or (entry.__doc__ or "")
            click.echo(wrapped(text.strip().splitlines()[0], f"  {name:{longest}s}  "))


@main.command()
def doctor() -> None:
    """Show versions, devices and ONNX Runtime providers, and what is missing."""
    _prepare_libraries()
    import onnxruntime

    from ..benchmarking import missing_for_gpu
    from ..provenance import environment

    found = environment()
    click.echo(f"Python {found['python']} on {found['platform']}")
    click.echo(f"{found['processor']}, {found['cores']} cores; GPUs: {', '.join(found['gpus']) or 'none'}")
    for package, version in found["versions"].items():
        click.echo(f"  {package:18s} {version}")
    click.echo(f"ONNX Runtime providers: {', '.join(onnxruntime.get_available_providers())}")
    click.echo(missing_for_gpu() or "CUDAExecutionProvider starts.")
