"""The command `intervene`, and the options that only it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

import tapioca_export as library

from ..config import Doses, Scaling
from ..numbering import LayerName
from .commands import LOADING, OUTPUT, PROBING, PROMPTS, SAMPLES, _config, main
from .options import _layers, _numbers, options
from .results import show, table_text


def _dosing(command: Any) -> Any:
    """Add which layers to scale, by what, and how many random sets to hold them against."""
    default = Doses()
    layers = click.option(
        "--layers", metavar="LAYERS", callback=_layers, default=None, type=click.UNPROCESSED,
        help="Layers to scale, 0-based, such as 3,7; of several stacks, encoder:3,decoder:7.",
    )  # fmt: skip
    selection = click.option(
        "--selection", type=click.Path(path_type=Path),
        help="A selection.json that names them [default: that of the run folder OUTPUT].",
    )  # fmt: skip
    alphas = click.option(
        "--alphas", metavar="NUMBERS", callback=_numbers, type=click.UNPROCESSED, show_default=True,
        default=",".join(f"{alpha:g}" for alpha in default.alphas),
        help="What the layers' updates are multiplied by: 0 drops, 1 leaves as it is; these two are added.",
    )  # fmt: skip
    draws = click.option(
        "--draws", type=int, default=default.draws, show_default=True,
        help="Random sets of as many other layers, dropped in comparison.",
    )  # fmt: skip
    epsilon = click.option(
        "--epsilon", type=float, default=default.epsilon, show_default=True,
        help="How far the ID metric may move, in its units, and be called flat.",
    )  # fmt: skip
    scaling = click.option(
        "--scaling", type=click.Choice(get_args(Scaling)), default=default.scaling, show_default=True,
        help="Multiply what a layer adds as a whole, or what each branch adds, as prune --scale can keep.",
    )  # fmt: skip
    return layers(selection(alphas(draws(epsilon(scaling(command))))))


@main.command()
@options(*LOADING, *SAMPLES, *PROMPTS, *OUTPUT, *PROBING, "protect_first", "protect_last")
@_dosing
def intervene(
    layers: tuple[LayerName, ...],
    selection: Path | None,
    alphas: tuple[float, ...],
    draws: int,
    epsilon: float,
    scaling: Scaling,
    as_json: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    """Scale what layers add, from dropped to amplified, and hold them against random layers."""
    doses = library.Doses(alphas, draws, epsilon, scaling)
    config = _config(flags, fills=False)  # a run folder may be added to
    from ..artifacts import Selection, read

    chosen = read(selection, Selection) if selection else None

    result = library.intervene(config, layers, chosen, doses)

    def text() -> str:
        from ..reporting import dose_table

        table = dose_table(result)
        return "\n".join([f"{table.caption}.", "", table_text(table), "", *result.verdict])

    show(result, as_json, quiet, text)
