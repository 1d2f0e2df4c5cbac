"""A search can be killed at any instant, and nobody else writes where it writes."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import text_records, write_jsonl

from tapioca_export import RunConfig, TapiocaError, select
from tapioca_export.artifacts import staged

Tiny = Callable[[str], Path]


@pytest.fixture
def config(tiny: Tiny, tmp_path: Path) -> RunConfig:
    files = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", text_records(96, seed))
        for seed, name in enumerate(("id", "target"))
    }
    return RunConfig(
        model=str(tiny("bert")),
        **files,
        output=tmp_path / "out",
        epsilon=1.0,
        eval_batch_size=4,
        num_threads=1,
    )


def journal_of(config: RunConfig) -> Path:
    return config.output.with_name(f".{config.output.name}.tapioca-partial") / "search.jsonl"


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def chosen(config: RunConfig) -> dict[str, Any]:
    selection = json.loads((config.output / "selection.json").read_text())
    del selection["cost"]["seconds"]  # the one number that no two runs share
    return selection


def outcomes(journal: Path) -> list[str]:
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return [json.dumps(line) for line in lines if line.get("kind") == "candidate"]


@pytest.mark.slow
def test_a_search_killed_at_random_instants_ends_with_the_identical_selection(
    config: RunConfig, tmp_path: Path
) -> None:
    select(config)
    reference, notes = chosen(config), outcomes(config.output / "search.jsonl")
    num_lines = len((config.output / "search.jsonl").read_text().splitlines())
    generator = random.Random(0)
    for number in range(6):
        again = RunConfig(**{**vars(config), "output": tmp_path / f"again-{number}"})
        wanted = generator.randrange(2, num_lines - 8)  # killed when about so many lines are written
        process = in_a_process(select, again)
        journal = journal_of(again)
        while process.is_alive() and (not journal.exists() or journal.read_bytes().count(b"\n") < wanted):
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not again.output.exists()
        lines_before = journal.read_bytes().count(b"\n")
        assert 2 <= lines_before <= num_lines
        select(again)
        assert chosen(again) == reference
        assert outcomes(again.output / "search.jsonl") == notes
        assert len((again.output / "search.jsonl").read_text().splitlines()) == num_lines


def test_a_line_torn_by_the_kill_does_not_change_the_selection(config: RunConfig, tmp_path: Path) -> None:
    select(config)
    reference = chosen(config)
    whole = (config.output / "search.jsonl").read_bytes()
    again = RunConfig(**{**vars(config), "output": tmp_path / "again"})
    journal_of(again).parent.mkdir()
    journal_of(again).write_bytes(whole[: len(whole) * 2 // 3])
    select(again)
    assert chosen(again) == reference
    assert (again.output / "search.jsonl").read_bytes() == whole


def test_a_journal_of_other_rows_is_refused_and_kept(config: RunConfig, tmp_path: Path) -> None:
    select(config)
    again = RunConfig(**{**vars(config), "output": tmp_path / "again"})
    journal_of(again).parent.mkdir()
    journal_of(again).write_bytes((config.output / "search.jsonl").read_bytes())
    other = write_jsonl(tmp_path / "other.jsonl", text_records(96, 77))
    with pytest.raises(TapiocaError, match="of another search: samples was"):
        select(RunConfig(**{**vars(again), "target": other}))
    assert journal_of(again).read_bytes() == (config.output / "search.jsonl").read_bytes()
    select(RunConfig(**{**vars(again), "target": other, "overwrite": True}))
    assert chosen(again) != chosen(config)


def hold(output: Path, ready: Any, go: Any) -> None:
    with staged(output, overwrite=False):
        ready.set()
        go.wait(30)


def test_the_second_of_two_processes_on_one_output_is_told(config: RunConfig) -> None:
    context = multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()
    process = in_a_process(hold, config.output, ready, go)
    assert ready.wait(30)
    with pytest.raises(TapiocaError, match="Another process is writing"):
        select(config)
    go.set()
    process.join()
    assert process.exitcode == 0
    assert list(config.output.iterdir()) == []


def test_a_dead_process_holds_nothing(config: RunConfig) -> None:
    context = multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()
    process = in_a_process(hold, config.output, ready, go)
    assert ready.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    select(config)
    assert (config.output / "selection.json").exists()


def put_something_there_meanwhile(output: Path) -> None:
    with staged(output, overwrite=False) as folder:
        (folder / "mine").write_text("mine")
        output.mkdir()
        (output / "theirs").write_text("theirs")


def test_an_output_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(TapiocaError, match="not empty"):
        put_something_there_meanwhile(output)
    assert [path.name for path in output.iterdir()] == ["theirs"]
