"""A profile as a pandas table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..numbering import Numbering
from .records import Curves, Deviation, LayerProfile

if TYPE_CHECKING:
    import pandas

    from .records import Profile


def profile_frame(profile: Profile) -> pandas.DataFrame:
    """Return a row for each boundary of each series, as `Profile.to_pandas` says."""
    import pandas

    deviations = {"target": profile.deviation, "target, pruned": profile.pruned_deviation}
    series = dict(profile.series)
    for name, domain in profile.targets.items():
        series[f"target {name}"] = domain.target
        deviations[f"target {name}"] = domain.deviation
        if domain.pruned_target is not None:
            series[f"target {name}, pruned"] = domain.pruned_target
            deviations[f"target {name}, pruned"] = domain.pruned_deviation
    rows = [
        {"series": name, **row}
        for name, part in series.items()
        for row in _rows(profile.numbering, part, deviations.get(name))
    ]
    frame = pandas.DataFrame(rows)
    numbers = [column for column in frame if column not in ("series", "boundary", "layer")]
    named = "string" if profile.stacks else "Int64"  # a column of whole numbers that may have gaps
    return frame.astype({"boundary": named, "layer": named, **dict.fromkeys(numbers, "float64")})


def _rows(numbering: Numbering, part: LayerProfile, deviation: Deviation | None) -> list[dict[str, Any]]:
    rows = []
    for stack, places in enumerate(numbering.boundaries):
        for place in places:
            layer = None if place == places[0] else place - stack - 1
            row = {
                "boundary": numbering.boundary_names[place],
                "layer": None if layer is None else numbering.name(layer),
                "influence": None if layer is None else part.influences[layer],
            }
            for one, quantity in (("norm", "norms"), ("distance", "distances")):
                band = getattr(part, f"{quantity}_band")
                low, high = band[place] if band else (None, None)
                row |= {one: getattr(part, quantity)[place], f"{one}_low": low, f"{one}_high": high}
                row[f"{one}_deviation"] = _at(deviation, quantity, place)
                row[f"{one}_noise_floor"] = _at(deviation and deviation.noise_floor, quantity, place)
            rows.append(row)
    return rows


def _at(curves: Deviation | Curves | None, quantity: str, place: int) -> float | None:
    return None if curves is None else getattr(curves, quantity)[place]
