"""The report says what the intervals show, and its page is inert and needs no network."""

from __future__ import annotations

import base64
import gzip
import json
import re
import subprocess
import sys
import unicodedata
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from plotly.offline import get_plotlyjs
from reports import (
    DROP,
    GAIN,
    HARM,
    NO_CHANGE,
    accuracy,
    benchmark,
    export,
    latency,
    profile,
    report,
    run,
    selection,
)

from tapioca_export import artifacts
from tapioca_export.artifacts import Flip, Pair, Prediction, Ratio, Report
from tapioca_export.cli.results import show
from tapioca_export.gating import Thresholds, check, render_summary
from tapioca_export.reporting import (
    about_medians,
    render_html,
    render_markdown,
    render_text,
    setting_text,
    write_report,
)
from tapioca_export.reporting.rendering import AGAIN
from tapioca_export.reporting.tables import TextTable, export_table, layer_table
from tapioca_export.reporting.wording import number, size_text
from tapioca_export.showing import visible

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Collects tags, their attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)

    def specs(self):
        return json.loads(self.scripts[0])


def verdict(target=GAIN, id=NO_CHANGE, **changes):
    """The verdict with these accuracies; None is a role without labels."""
    measured = {"target": target, "id": id}
    roles = {role: found for role, found in measured.items() if found is not None}
    return report(benchmark=benchmark(accuracy=roles, **changes)).verdict


def nothing_dropped(**changes):
    """A report on a search that kept every layer."""
    kept = replace(selection(), drop=(), steps=(), **changes)
    return report(selection=kept)


def finding(start, made):
    """The one finding that begins with these words."""
    (found,) = [line for line in made.findings if line.startswith(start)]
    return found


# --- verdict --------------------------------------------------------------------------------


def test_a_shown_gain_is_stated_with_its_numbers():
    text = verdict()
    assert text.startswith(
        "Dropping layers 4 and 7 of 12 raises the target accuracy from 0.712 to 0.768 "
        "(95 % interval of the change +0.024 to +0.088, 500 rows)"
    )
    assert "on ID no change was shown" in text
    assert "1.16 to 1.19 times faster (ideal 1.20); file 12.8 % smaller." in text
    assert "remove nothing" not in text


def test_parts_of_layers_are_named_in_the_verdict():
    chosen = replace(selection(), drop=("4.attention", "7.mlp"))
    assert report(selection=chosen).verdict.startswith(
        "Dropping the attention of layer 4 and the MLP of layer 7 of 12 raises the target accuracy"
    )


def test_a_falling_error_is_a_gain():
    better = accuracy(0.50, 0.40, (-0.15, -0.05), metric="nmse", higher_is_better=False)
    assert "lowers the target nmse from 0.500 to 0.400" in verdict(target=better)


def test_an_interval_that_touches_zero_shows_no_improvement():
    text = verdict(target=accuracy(0.70, 0.73, (0.0, 0.06)))
    assert text.startswith("No improvement on the target was shown")
    assert text.endswith("unless a smaller or faster model is the goal, remove nothing.")


def test_harm_on_the_target_is_called_harm():
    text = verdict(target=HARM)
    assert "harms the target: accuracy goes from 0.712 to 0.640" in text
    assert "remove nothing" in text


def test_a_rising_error_is_harm():
    worse = accuracy(0.40, 0.50, (0.05, 0.15), metric="nmse", higher_is_better=False)
    assert "harms the target" in verdict(target=worse)


def test_harm_on_id_is_called_harm_beside_a_gain_on_the_target():
    text = verdict(id=HARM)
    assert "raises the target" in text
    assert "it harms ID, accuracy from 0.712 to 0.640" in text


def test_a_target_without_labels_is_not_judged():
    text = verdict(target=None, id=None)
    assert "helps the target was not measured (no labelled target rows)" in text
    assert "ID was not measured" in text


def test_nothing_dropped_says_remove_nothing():
    text = nothing_dropped().verdict
    assert text.startswith("Remove nothing: criterion tale chose none of the 12 layers")
    assert "no candidate reached the floor" in text


def test_one_dropped_layer_is_singular():
    made = report(selection=replace(selection(), drop=(7,)))
    assert made.verdict.startswith("Dropping layer 7 of 12 raises")


def test_a_speedup_within_timing_noise_is_not_called_faster():
    row = latency(speedup=Ratio(1.01, (1.0, 1.02)))
    assert "not measurably faster (1.01 times the speed" in verdict(latency=(row,))


def test_a_slower_model_is_called_slower():
    row = latency(speedup=Ratio(0.9, (0.88, 0.92)))
    assert "; slower (0.90 times the speed" in verdict(latency=(row,))


@pytest.mark.parametrize(
    ("original_ms", "pruned_ms", "speedup", "is_said"),
    [
        (10.0, 9.8, 0.98, True),
        (9.8, 10.0, 1.02, True),
        (10.0, 9.8, 1.02, False),
        (9.8, 10.0, 0.98, False),
        (10.0, 9.8, 0.996, False),  # shown as 1.00
        (10.004, 10.001, 0.9, False),  # shown as 10.00 both
        (10.0, 10.0, 1.2, False),
    ],
)
def test_times_and_speedup_on_different_sides_are_explained_where_both_are_shown(
    original_ms, pruned_ms, speedup, is_said
):
    low = speedup - 0.02
    odd = latency(8, low, original=replace(latency().original, p50_ms=original_ms))
    odd = replace(odd, pruned=replace(odd.pruned, p50_ms=pruned_ms), speedup=Ratio(speedup, (low, 1.1)))
    found = report(benchmark=benchmark(latency=(latency(), odd))).findings
    said = [line for line in found if "different sides" in line]
    assert len(said) == is_said
    assert all(f"are on different sides of 1 at {setting_text(odd)}: " in line for line in said)
    both = about_medians(benchmark(latency=(odd, latency(), odd)))
    assert [f"at {setting_text(odd)}; {setting_text(odd)}: " in line for line in both] == [True] * is_said


def test_some_faster_settings_are_counted():
    rows = (latency(), latency(speedup=Ratio(1.01, (1.0, 1.02))))
    assert "faster beyond timing noise in 1 of 2 settings" in verdict(latency=rows)


def test_latency_and_size_that_were_not_measured_are_not_claimed():
    text = verdict(latency=(), size_bytes=Pair(0, 0))
    assert "latency was not measured; file size was not measured" in text


# --- findings -------------------------------------------------------------------------------


def test_a_target_within_the_noise_floor_is_said_not_to_deviate():
    base = profile()
    quiet = replace(base, deviation=replace(base.deviation, mean=0.01))
    assert "does not deviate" in finding("The target", report(profile=quiet))


def test_the_removed_share_of_the_deviation_is_stated():
    assert re.search(r"pruning lowered it by \d+ %", finding("The target deviates", report()))


def test_a_deviation_that_grew_is_stated():
    grown = replace(profile(), deviation_removed=-0.25)
    assert "pruning raised it by 25 %" in finding("The target deviates", report(profile=grown))


@pytest.mark.parametrize(
    ("spearman", "p_value", "words"),
    [(0.8, 0.01, "predicted"), (-0.8, 0.01, "ranked against"), (0.4, 0.2, "was not shown")],
)
def test_the_label_free_score_is_judged_by_its_rank_correlation(spearman, p_value, words):
    found = replace(selection(), prediction=Prediction(spearman, p_value, 12))
    assert words in finding("The label-free score", report(selection=found))


def test_failed_parity_is_called_disagreement():
    broken = {"pruned/onnx": export(max_abs_difference=0.3)}
    assert "does NOT agree" in finding("Export pruned/onnx", report(exports=broken))


def test_unmeasured_roles_skipped_work_and_the_paper_are_mentioned():
    made = report(benchmark=benchmark(accuracy={}))
    assert "was not measured" in finding("Target", made)
    assert "no such device" in finding("Not measured here", made)
    assert "own proposal" in finding("The body of the TAPIOCA paper", made)


def test_what_profile_prints_stands_behind_each_layer():
    made = report().profile
    rows = layer_table(made).rows
    assert [row[0] for row in rows] == [str(layer) for layer in range(12)]
    values = (made.id.norms, made.target.norms, made.deviation.norms, made.deviation.distances)
    assert rows[4][1:] == tuple(number(column[5]) for column in values)


def test_a_report_says_how_it_is_made_again():
    assert AGAIN in render_markdown(report())
    assert AGAIN in render_html(report())


def test_an_export_says_how_many_layers_it_has_left():
    shown = {row[0]: row[1] for row in export_table({"pruned/onnx": export(num_layers=12, drop=DROP)}).rows}
    assert shown["layers"] == "10 of 12 (dropped 4, 7)"


def test_torchscript_is_called_deprecated_only_where_it_was_exported():
    assert not any("deprecated" in line for line in report().findings)
    made = report(exports={"pruned/torchscript": export("torchscript")})
    assert any("deprecated" in line for line in made.findings)


# --- files ----------------------------------------------------------------------------------


def test_a_written_report_reads_back_equal(tmp_path):
    made = report()
    write_report(made, tmp_path)
    assert artifacts.read(tmp_path / "report.json", Report) == made
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]


def test_rendering_twice_gives_the_same_page():
    assert render_html(report()) == render_html(report())


def hostile_report():
    """A report whose every free text is an attack."""
    return report(
        run=run(model=HOSTILE, **{HOSTILE: HOSTILE}),
        selection=replace(selection(HOSTILE), stop_reason=HOSTILE, metric=HOSTILE),
        profile=replace(profile(HOSTILE), position=HOSTILE),
        benchmark=benchmark(
            accuracy={"target": replace(GAIN, metric=HOSTILE), HOSTILE: GAIN},
            latency=(latency(provider=HOSTILE),),
            skipped=(HOSTILE,),
        ),
        exports={HOSTILE: export(note=HOSTILE)},
    )


def test_hostile_text_is_inert_in_html():
    page, plain = Page(render_html(hostile_report())), Page(render_html(report()))
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == [tag for tag, _ in plain.tags].count("script") == 3
    assert "img" not in names
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)


def test_hostile_text_is_inert_in_plots():
    text = json.dumps(Page(render_html(hostile_report())).specs())
    assert "<script" not in text
    assert "<img" not in text


def test_hostile_text_is_inert_in_markdown():
    text = render_markdown(hostile_report())
    outside_code = [line for line in text.splitlines() if not line.startswith("    ")]
    assert not any("<script" in line or "<img" in line for line in outside_code)
    assert all(line.count("|") > 2 for line in outside_code if line.startswith("|"))


# NUL, bell, escape, delete, CSI, right-to-left override, isolate, half a character.
UNSEEN = "a\x00\x07\x1b[2J\x7f\x9b\u202e\u2066\ud800z"
SEEN = "a\u2400\u2407\u241b[2J\u2421\\u009b\\u202e\\u2066\\ud800z"


def unseen_in(text: str) -> set[str]:
    return {sign for sign in text if unicodedata.category(sign) in ("Cc", "Cs") or sign in "\u202e\u2066"}


def test_what_nobody_would_see_is_shown_by_signs_and_nothing_else_changes():
    assert visible(UNSEEN) == SEEN
    controls = [chr(code) for code in (*range(0x20), 0x7F)]
    assert [visible(sign) for sign in controls if sign not in "\t\n"] == [
        chr(0x2400 + min(ord(sign), 0x21)) for sign in controls if sign not in "\t\n"
    ]
    assert all(visible(chr(code)) == f"\\u{code:04x}" for code in range(0x80, 0xA0))
    plain = "tab\t line\n \u05d0\u05d1 \U0001f600 e\u0301 \u200d\xa0\\x1b \u2400"
    assert visible(plain) == plain


@pytest.mark.parametrize("render", [render_html, render_markdown, lambda found: found._repr_html_()])
def test_no_control_character_reaches_a_page(render, monkeypatch):
    monkeypatch.setattr("test_reporting.HOSTILE", UNSEEN)
    made = hostile_report()
    domains = {UNSEEN: replace(GAIN, metric=UNSEEN)}
    flips = {"target": (Flip(UNSEEN, UNSEEN, 1.0, 0.0, UNSEEN, UNSEEN),)}
    made = replace(made, benchmark=replace(made.benchmark, targets=domains, flips=flips))
    text = render(made)
    assert unseen_in(text) <= {"\n", "\t"}
    assert "\u2400" in text


def texts_in(value) -> str:
    """All texts of plain values, one after another."""
    if isinstance(value, dict):
        return "".join(map(texts_in, value.values()))
    return "".join(map(texts_in, value)) if isinstance(value, list) else str(value)


def test_no_control_character_reaches_a_plot(monkeypatch):
    monkeypatch.setattr("test_reporting.HOSTILE", UNSEEN)
    shown = texts_in(Page(render_html(hostile_report())).specs())
    assert unseen_in(shown) <= {"\n", "\t"}
    assert SEEN in shown


def test_no_control_character_reaches_the_terminal(capsys, tmp_path):
    table = TextTable(UNSEEN, ("x", UNSEEN), (("y", UNSEEN),))
    assert render_text(table).splitlines() == [f"x  {SEEN}", f"y  {SEEN}"]
    show(None, as_json=False, quiet=False, text=lambda: f"{UNSEEN}\nnext\tline")
    assert capsys.readouterr().out == f"{SEEN}\nnext\tline\n"


def test_a_gate_that_names_what_nobody_would_see_shows_it():
    made = replace(report(), verdict=UNSEEN)
    verdict = check(made, Thresholds(min_speedup=0.0))
    assert SEEN in render_summary(made, verdict)


def test_the_page_loads_nothing():
    page = Page(render_html(report()))
    links = [value for _, attrs in page.tags for key, value in attrs.items() if key in LOADING]
    assert all(value.startswith("#") for value in links)
    assert "link" not in [tag for tag, _ in page.tags]
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "http" not in policy


LOADING = ("src", "href", "srcset", "action", "data", "poster")


def test_plotly_stands_in_the_page_once_and_the_page_is_small():
    page = render_html(report())
    packed = [script for script in Page(page).scripts if script.startswith("H4sI")]
    assert [gzip.decompress(base64.b64decode(script)).decode() for script in packed] == [get_plotlyjs()]
    assert len(page.encode()) < 3_000_000


def test_every_plot_has_its_place_and_words():
    page = Page(render_html(report()))
    places = [attrs for _, attrs in page.tags if "data-figure" in attrs]
    assert {attrs["data-figure"] for attrs in places} == set(page.specs())
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in places)
    assert len(places) == 10


def test_dropped_layers_are_marked_between_their_boundaries():
    shapes = Page(render_html(report())).specs()["profile-norms"]["layout"]["shapes"]
    assert [(shape["x0"], shape["x1"]) for shape in shapes] == [(d, d + 1) for d in DROP]


def test_the_picked_depth_and_the_rejected_round_are_drawn():
    traces = {t["name"]: t for t in Page(render_html(report())).specs()["search"]["data"]}
    assert traces["picked"]["x"] == [len(DROP)]
    assert set(traces["rejected candidate"]["x"]) == {3}
    assert traces["accepted"]["y"] == [0.72, 0.741, 0.779]


@pytest.mark.parametrize(("higher_is_better", "side"), [(True, "top center"), (False, "bottom center")])
def test_the_accepted_path_is_labelled_where_no_candidate_is(higher_is_better: bool, side: str):
    chosen = replace(report().selection, higher_is_better=higher_is_better)
    traces = {t["name"]: t for t in Page(render_html(report(selection=chosen))).specs()["search"]["data"]}
    assert {traces[name]["textposition"] for name in ("accepted", "picked")} == {side}
    assert traces["accepted"]["text"] == ["", "7", ""]  # the star has the label of its own point
    assert traces["picked"]["text"] == ["4"]


def test_size_and_memory_are_drawn_as_shares_of_the_original():
    spec = Page(render_html(report())).specs()["sizes"]
    original, pruned = spec["data"]
    names = spec["layout"]["yaxis"]["ticktext"]
    measured = report().benchmark
    size, memory = measured.size_bytes, measured.peak_memory_bytes
    assert names[:2] == ["file size", "peak memory"]
    assert set(original["x"]) == {1.0}
    assert pruned["x"][:2] == pytest.approx(
        [size.pruned / size.original, memory.pruned / memory.original], abs=5e-4
    )
    assert pruned["text"][0] == size_text(size.pruned)
    assert [round(y) for y in pruned["y"]] == spec["layout"]["yaxis"]["tickvals"]  # each beside its name


def test_what_was_not_measured_has_no_share():
    nothing = Pair(0.0, 0.0)
    measured = benchmark(size_bytes=nothing, peak_memory_bytes=nothing)
    assert Page(render_html(report(benchmark=measured))).specs()["sizes"]["layout"]["yaxis"]["ticktext"] == [
        "load time"
    ]


def test_a_search_without_metric_plots_the_score():
    steps = tuple(
        replace(
            step,
            metric=None,
            candidates=tuple(replace(c, metric=None) for c in step.candidates),
        )
        for step in selection().steps
    )
    blind = replace(selection(), steps=steps, rejected=(), metric=None, baseline_metric=None)
    spec = Page(render_html(report(selection=blind))).specs()["search"]
    assert spec["layout"]["yaxis"]["title"]["text"] == "tale score"
    assert {t["name"]: t["y"] for t in spec["data"]}["accepted"] == [2.1, 1.2]


def test_a_report_with_little_measured_still_renders():
    bare = replace(profile(), drop=(), pruned_id=None, pruned_target=None, pruned_deviation=None)
    bare = replace(bare, deviation_removed=None)
    kept = replace(selection(), drop=(), steps=(), rejected=(), prediction=None, cost=None)
    empty = benchmark(accuracy={}, latency=(), drop=(), optimism_gap=None, skipped=())
    made = report(selection=kept, profile=bare, benchmark=empty, exports={})
    assert "Remove nothing" in render_html(made)
    assert "Not measured." in render_markdown(made)


def test_a_number_that_is_not_finite_is_a_gap_in_the_plot():
    base = profile()
    broken = replace(base, id=replace(base.id, norms=(float("nan"), *base.id.norms[1:])))
    spec = Page(render_html(report(profile=broken))).specs()["profile-norms"]
    assert None in next(t for t in spec["data"] if t.get("name") == "ID")["y"]


def test_importing_the_stage_loads_neither_plotly_nor_jinja2():
    code = (
        "import sys, tapioca_export.reporting, tapioca_export.gating;"
        "print([m for m in ('plotly', 'jinja2', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
