"""In a notebook results show themselves, profiles are tables, and plots are those of the report."""

from __future__ import annotations

import html
import io
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pandas
import pytest
import reports
from test_collating import a_report, beside
from test_reporting import HOSTILE, Page

import tapioca_export
from tapioca_export import Thresholds, plot
from tapioca_export.artifacts import (
    Bounds,
    Compared,
    Comparison,
    Cost,
    DomainProfile,
    FileCheck,
    Pair,
    Plan,
    Point,
    Profile,
    ProofCheck,
    Report,
    Verification,
    write,
)
from tapioca_export.errors import ConfigError
from tapioca_export.gating import check
from tapioca_export.reporting import render_html
from tapioca_export.schemas import kinds
from tapioca_export.showing import Shown

TAGS = {"p", "table", "caption", "thead", "tbody", "tr", "th", "td"}


def results(name: str = "bert-tiny") -> dict[str, Any]:
    """Return a result of every kind that shows itself; every free text of it is the name."""
    bounds = Bounds(1, 2)
    compared = Compared(
        name, (4,), 1, name, replace(reports.GAIN, metric=name), reports.NO_CHANGE, Cost(1, 2, 3, 4.0)
    )
    named = {
        "selection": replace(reports.selection(name), metric=name, stop_reason=name),
        "benchmark": reports.benchmark(
            accuracy={"target": replace(reports.GAIN, metric=name), "id": reports.NO_CHANGE},
            latency=(reports.latency(provider=name),),
        ),
    }
    report = reports.report(
        run=reports.run(model=name), intervention=reports.intervention(metric=name), **named
    )
    return {
        **named,
        "report": report,
        "profile": replace(reports.profile(name), targets={name: domain()}),
        "intervention": report.intervention,
        "comparison": Comparison(name, name, 4, 1, (compared,)),
        "export": reports.export(note=name, files={name: name}, inputs=(name,)),
        "plan": Plan(
            name, name, name, "greedy", False, 4, 9, 2, 32, (32, 40), bounds, bounds, bounds, bounds, bounds,
            1, 2, 3, 0.5, "cpu", "local", 1, name,
        ),
        "run_comparison": beside(a_report(), a_report(**named)),
        "verification": Verification(
            name, False, (name,), (FileCheck(name, "output", "changed"), FileCheck("fine", "output", "same")),
            (ProofCheck(name, "fails", name),), {},
        ),
    }  # fmt: skip


def domain() -> DomainProfile:
    whole = reports.profile()
    return DomainProfile(
        whole.target, whole.deviation, whole.pruned_target, whole.pruned_deviation, whole.deviation_removed
    )


# --- HTML -----------------------------------------------------------------------------------


def test_every_result_that_a_function_returns_shows_itself() -> None:
    shown = {kind for kind, cls in kinds().items() if issubclass(cls, Shown)}
    assert shown == set(results())
    assert shown == set(kinds()) - {"run", "provenance", "ort_session"}  # are records beside results


@pytest.mark.parametrize("kind", sorted(results()))
def test_what_is_shown_is_small_inert_and_needs_nothing(kind: str) -> None:
    plain, hostile = (results(name)[kind]._repr_html_() for name in ("bert-tiny", HOSTILE))
    for text in (plain, hostile):
        page = Page(text)
        tags = [tag for tag, _ in page.tags]
        assert set(tags) <= TAGS
        assert "table" in tags
        assert not any(
            key.startswith("on") or key in ("src", "href") for _, attrs in page.tags for key in attrs
        )
    assert len(plain) < 15_000
    assert [tag for tag, _ in Page(plain).tags] == [tag for tag, _ in Page(hostile).tags]


def test_the_numbers_stand_in_what_is_shown() -> None:
    found = results()
    report = found["report"]._repr_html_()
    assert f'<p dir="auto">{html.escape(found["report"].verdict)}</p>' in report
    assert '<td dir="auto">+0.056 (+0.024 to +0.088)</td>' in report
    assert '<th scope="row" dir="auto">target</th>' in report
    profile = found["profile"]._repr_html_()
    assert profile.count("<tr>") == 2 + reports.NUM_LAYERS + 1 + 1  # two heads, the boundaries, a domain
    assert "chose dropping layers 4 and 7 of 12 layers" in found["selection"]._repr_html_()
    verification = found["verification"]._repr_html_()
    assert "changed" in verification
    assert "fine" not in verification


def test_a_gates_verdict_shows_every_check() -> None:
    shown = check(
        reports.report(), Thresholds(min_speedup=9.0, max_size_ratio=1.0, max_id_loss=1.0)
    )._repr_html_()
    assert shown.count("FAIL") == 1
    assert shown.count("<tr>") == 4
    assert "min_speedup" in shown


def test_a_result_that_was_read_shows_itself_though_nothing_else_is_loaded(tmp_path: Path) -> None:
    write(tmp_path / "selection.json", reports.selection())
    code = (
        "import sys; from pathlib import Path; from tapioca_export.artifacts import Selection, read;"
        f"found = read(Path({str(tmp_path / 'selection.json')!r}), Selection);"
        "before = 'tapioca_export.reporting' in sys.modules; print(before, found._repr_html_()[:3])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False <p"


# --- pandas ---------------------------------------------------------------------------------


def test_a_profile_is_a_table_of_a_row_a_boundary() -> None:
    found = reports.profile()
    frame = found.to_pandas()
    assert list(frame["series"].unique()) == ["ID", "ID, pruned", "target", "target, pruned"]
    target = frame[frame["series"] == "target"].reset_index()
    assert target["boundary"].tolist() == list(range(reports.NUM_LAYERS + 1))
    assert target["layer"].isna().tolist() == [True] + [False] * reports.NUM_LAYERS
    assert target["layer"].tolist()[1:] == list(range(reports.NUM_LAYERS))
    assert tuple(target["norm"]) == found.target.norms
    assert tuple(target["distance"]) == found.target.distances
    assert list(zip(target["norm_low"], target["norm_high"], strict=True)) == list(found.target.norms_band)
    assert list(zip(target["distance_low"], target["distance_high"], strict=True)) == list(
        found.target.distances_band
    )
    assert tuple(target["norm_deviation"]) == found.deviation.norms
    assert tuple(target["distance_noise_floor"]) == found.deviation.noise_floor.distances
    assert tuple(target["influence"])[1:] == found.target.influences
    assert frame["norm"].dtype == frame["influence"].dtype == np.float64


def test_what_was_not_measured_is_missing() -> None:
    frame = reports.profile().to_pandas()
    pruned = frame[frame["series"] == "ID, pruned"]
    assert pruned.loc[pruned["influence"].isna(), "layer"].dropna().tolist() == list(reports.DROP)
    assert frame.loc[frame["series"] == "ID", "norm_deviation"].isna().all()
    after = frame.loc[frame["series"] == "target, pruned", "norm_deviation"]
    assert tuple(after) == reports.profile().pruned_deviation.norms
    whole = reports.profile()
    bare = replace(whole, pruned_id=None, pruned_target=None, id=replace(whole.id, norms_band=()))
    frame = bare.to_pandas()
    assert list(frame["series"].unique()) == ["ID", "target"]
    assert frame.loc[frame["series"] == "ID", "norm_low"].isna().all()


def test_layers_of_several_stacks_and_domains_are_named() -> None:
    layers = (*(f"encoder:{n}" for n in range(7)), *(f"decoder:{n}" for n in range(4)))
    whole = reports.profile()
    part = replace(whole.id, influences=tuple(float(n) for n in range(11)))  # 11 layers have 13 boundaries
    several = Profile(
        "m", "t", "all", layers, part, part, whole.deviation, stacks={"encoder": 7, "decoder": 4},
        targets={"airline": DomainProfile(part, whole.deviation)},
    )  # fmt: skip
    frame = several.to_pandas()
    assert list(frame["series"].unique()) == ["ID", "target", "target airline"]
    airline = frame[frame["series"] == "target airline"]
    rows = {row.boundary: (row.layer, row.influence) for row in airline.itertuples()}
    assert rows["encoder:7"] == ("encoder:6", 6.0)
    assert rows["decoder:1"] == ("decoder:0", 7.0)
    assert pandas.isna(rows["decoder:0"][0])
    assert math.isnan(rows["decoder:0"][1])
    assert tuple(airline["norm_deviation"]) == whole.deviation.norms
    legend = plot(several)["profile-norms"].legends[0]  # each series is a line a stack
    assert [text.get_text() for text in legend.get_texts()] == ["ID", "target"]


# --- matplotlib -----------------------------------------------------------------------------


def whole_report(**changes: Any) -> Report:
    """A report with every plot that there is."""
    points = (
        Point((), 0.7, {"a": 0.7}, 0.9, 0.0, 0.0, True),
        Point(reports.DROP, 0.8, {"a": 0.8}, 0.8, 0.1, 0.1, True),
        Point((1,), 0.6, {"a": 0.6}, 0.8, -0.1, 0.1, False),
    )
    chosen = replace(reports.selection(), points=points, objective="mean")
    return reports.report(**{"selection": chosen, "intervention": reports.intervention(), **changes})


def specs(report: Report) -> dict[str, Any]:
    return Page(render_html(report)).specs()


def test_every_plot_of_a_report_is_drawn_with_its_data() -> None:
    made = whole_report()
    drawn, expected = plot(made), specs(made)
    assert set(drawn) == set(expected)
    assert len(drawn) == 16
    for name, spec in expected.items():
        (axes,) = drawn[name].axes
        for trace in (t for t in spec["data"] if t.get("fill") != "toself"):
            x, y = (np.array([np.nan if v is None else v for v in trace[a]], float) for a in "xy")
            assert any(same(line, x, y) for line in axes.lines), (name, trace["name"])
        assert axes.get_xlabel() == spec["layout"]["xaxis"]["title"]["text"]


def same(line: Any, x: np.ndarray, y: np.ndarray) -> bool:
    found = (np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float))
    return all(
        a.shape == b.shape and np.allclose(a, b, equal_nan=True) for a, b in zip(found, (x, y), strict=True)
    )


def test_whiskers_bands_marks_and_legends_are_those_of_the_page() -> None:
    skewed = replace(reports.GAIN, interval=(0.05, 0.088))
    made = whole_report(benchmark=reports.benchmark(accuracy={"id": reports.NO_CHANGE, "target": skewed}))
    drawn, expected = plot(made), specs(made)
    (axes,) = drawn["change-1"].axes
    ends = [tuple(segment[:, 0]) for c in axes.collections for segment in c.get_segments()]
    assert [pytest.approx(end) for end in ends] == [reports.NO_CHANGE.interval, skewed.interval]
    (axes,) = drawn["profile-norms"].axes
    band = axes.patches[0].get_xy()[:, 1]
    assert band.max() == pytest.approx(max(high for _, high in reports.profile().id.norms_band))
    columns = [patch for patch in axes.patches if patch.get_zorder() == 0.5]
    assert [(c.get_x(), c.get_x() + c.get_width()) for c in columns] == [(d, d + 1) for d in reports.DROP]
    assert [text.get_text() for text in axes.texts] == ["4", "7"]
    legend = [text.get_text() for text in drawn["profile-norms"].legends[0].get_texts()]
    assert legend == ["ID", "ID, pruned", "target", "target, pruned"]
    assert not drawn["change-1"].legends
    (axes,) = drawn["speedup"].axes
    assert axes.get_yticklabels()[0].get_text() == "batch 1, 128 tokens\nCPU"
    styles = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert styles["A/A noise"] == ("#808080", "-")
    assert axes.get_ylim() == tuple(expected["speedup"]["layout"]["yaxis"]["range"])
    (axes,) = drawn["influence"].axes
    assert axes.get_ylim()[0] == 0.0
    (axes,) = drawn["trade-offs"].axes
    assert {text.get_text() for text in axes.texts} == {"0", "1", "2"}


def test_runs_side_by_side_are_drawn_with_both_whiskers() -> None:
    drawn = plot(beside(a_report(), a_report()))
    (axes,) = drawn["trade-1"].axes
    across, up = reports.NO_CHANGE.gain_interval, reports.GAIN.gain_interval
    ends = [segment for c in axes.collections for segment in c.get_segments()]
    spans = {tuple(np.round(np.ptp(segment, axis=0), 6)) for segment in ends}
    assert spans == {(round(across[1] - across[0], 6), 0.0), (0.0, round(up[1] - up[0], 6))}
    assert list(drawn) == ["trade-1", "speed-1"]


def test_each_part_of_a_report_has_its_own_plots() -> None:
    made = whole_report()
    parts = (made.profile, made.selection, made.intervention, made.benchmark)
    assert [name for part in parts for name in plot(part)] == list(plot(made))
    nothing = dict.fromkeys(("size_bytes", "peak_memory_bytes", "load_seconds"), Pair(0.0, 0.0))
    assert plot(replace(made.benchmark, accuracy={}, latency=(), **nothing)) == {}


def test_a_wide_profile_has_a_log_scale() -> None:
    base = reports.profile()
    wide = replace(base, id=replace(base.id, norms=(0.01, *base.id.norms[1:])))
    drawn = plot(wide)
    assert drawn["profile-norms"].axes[0].get_yscale() == "log"
    assert drawn["profile-distances"].axes[0].get_yscale() == "linear"


def test_names_with_a_meaning_to_matplotlib_are_drawn_as_they_are() -> None:
    evil = r"$\frac{$ <b>&amp;"
    scored = replace(reports.GAIN, metric=evil)
    rows = (reports.latency(provider=evil),)
    made = reports.benchmark(accuracy={"target": scored, "id": scored}, latency=rows)
    drawn = plot(made)
    assert drawn["change-1"].axes[0].get_xlabel() == f"change in {evil}"
    for figure in drawn.values():
        assert isinstance(figure, matplotlib.figure.Figure)
        figure.savefig(io.BytesIO(), format="png", dpi=20)


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="Plots need matplotlib, which is not installed") as caught:
        plot(reports.profile())
    assert caught.value.hint == "pip install 'tapioca-export[plots]'"


def test_the_documents_code_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent.parent / "docs" / "notebooks.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tapioca_export, "report", lambda folder: whole_report(), raising=False)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    assert (tmp_path / "norms.pdf").read_bytes().startswith(b"%PDF")
    assert set(names["frame"]) == {
        name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in columns_of(row)
    }


def columns_of(cell: str) -> list[str]:
    """Return the columns that a row of the document's table is about, with those that its text derives."""
    names = re.findall(r"`(\w+)`", cell)
    bands = [f"{name}_{end}" for name in names if name in ("norm", "distance") for end in ("low", "high")]
    floors = [name.replace("deviation", "noise_floor") for name in names if name.endswith("_deviation")]
    return [*names, *bands, *floors]


def test_what_has_no_plots_is_refused_with_what_has() -> None:
    with pytest.raises(ConfigError, match="Export has no plots") as caught:
        plot(reports.export())
    assert "Benchmark, Intervention, Profile" in (caught.value.hint or "")


def test_plotting_opens_no_window_and_changes_no_setting() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); import reports; from tapioca_export import plot;"
        "plot(reports.profile()); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_figure_shows_itself() -> None:
    figure = plot(reports.profile())["influence"]
    figure.set_dpi(20)
    assert figure._repr_png_().startswith(b"\x89PNG")
