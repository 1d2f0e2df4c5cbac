"""Where work runs: in this process or on Ray, with the same results whatever finishes or dies first."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tapioca_export.engines import (
    ENGINES,
    EngineError,
    EngineSettings,
    MakeWorker,
    gpus_each,
    open_engine,
)
from tapioca_export.errors import ConfigError, SelectionError, UnknownNameError

on_ray = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
ENGINES_UNDER_TEST = ["local", pytest.param("ray", marks=on_ray)]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """One local cluster for the tests that do not look at how it starts."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
    ray = pytest.importorskip("ray")
    # Ray counts what it is told, so that GPUs are dealt out where there are none.
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init(address="local", num_cpus=2, num_gpus=2, **quiet)
    yield ray
    ray.shutdown()


def settings_of(name: str, request: pytest.FixtureRequest) -> EngineSettings:
    if name == "local":
        return EngineSettings()
    request.getfixturevalue("ray")
    return EngineSettings(num_workers=2)


# Functions made inside functions travel to Ray by value: its workers cannot import this module.


def squares(folder: Path, before: Callable[[int], None] = lambda item: None) -> MakeWorker:
    """Make workers that square, and leave one file behind for each time one is made."""

    def make_worker() -> Callable[[int], int]:
        (folder / f"made-{os.getpid()}-{time.time_ns()}").touch()

        def square(item: int) -> int:
            before(item)
            return item * item

        return square

    return make_worker


def num_made(folder: Path) -> int:
    return len(list(folder.glob("made-*")))


def first_is_slow() -> Callable[[int], None]:
    return lambda item: time.sleep(0.5 if item == 0 else 0.0)


def dies(folder: Path, *, always: bool) -> Callable[[int], None]:
    """Kill the worker's process at item 3: the first time, or whenever it comes."""
    done = folder / "died"

    def die(item: int) -> None:
        if item == 3 and (always or not done.exists()):
            done.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return die


def refuses() -> Callable[[int], None]:
    def refuse(item: int) -> None:
        if item == 2:
            raise UnknownNameError("layer", "atention", ["attention"])

    return refuse


@pytest.mark.parametrize("name", ENGINES_UNDER_TEST)
def test_results_come_in_the_order_of_the_items(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    settings = settings_of(name, request)
    with open_engine(name, squares(tmp_path, first_is_slow()), settings) as engine:
        assert engine.num_workers == settings.num_workers
        assert engine.map(range(8)) == [0, 1, 4, 9, 16, 25, 36, 49]


@pytest.mark.parametrize("name", ENGINES_UNDER_TEST)
def test_a_worker_is_made_once_and_not_for_every_item(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    settings = settings_of(name, request)
    with open_engine(name, squares(tmp_path), settings) as engine:
        assert engine.map([]) == []
        assert num_made(tmp_path) == 0
        assert engine.map(range(6)) == engine.map(list(range(6)))
    assert 1 <= num_made(tmp_path) <= settings.num_workers


@pytest.mark.parametrize("name", ENGINES_UNDER_TEST)
def test_an_error_of_ours_arrives_as_it_was_raised(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with open_engine(name, squares(tmp_path, refuses()), settings_of(name, request)) as engine:
        with pytest.raises(UnknownNameError) as caught:
            engine.map(range(4))
        assert type(caught.value) is UnknownNameError
        assert caught.value.message == "Unknown layer 'atention'."
        assert caught.value.hint == "Did you mean 'attention'? Known: attention."
        assert engine.map([1, 4]) == [1, 16]  # the engine is still good


@pytest.mark.parametrize("name", ENGINES_UNDER_TEST)
def test_an_error_while_loading_arrives_as_it_was_raised(name: str, request: pytest.FixtureRequest) -> None:
    def make_worker() -> Callable[[int], int]:
        raise SelectionError("no layers", "add some")

    with (
        open_engine(name, make_worker, settings_of(name, request)) as engine,
        pytest.raises(SelectionError, match=r"^no layers\nadd some$"),
    ):
        engine.map([1])


@pytest.mark.parametrize(
    ("device", "workers", "per_node", "each"),
    [
        ("cpu", 2, [8], 0), ("cuda", 2, [], 0), ("cuda", 2, [0, 0], 0), ("auto", 2, [0], 0),
        ("cuda:1", 2, [8], 0),  # every worker on that one, as asked
        ("cuda", 8, [8], 1), ("cuda", 2, [8], 1), ("cuda", 3, [1, 0, 2], 1),
        ("cuda", 2, [1], 1 / 2), ("cuda", 3, [2], 1 / 2), ("cuda", 9, [2, 2], 1 / 3),
        ("auto", 1, [8], 8), ("auto", 2, [8], 4), ("auto", 3, [8], 2), ("auto", 2, [4, 4], 4),
        ("auto", 3, [8, 8], 4), ("auto", 2, [8, 1], 4), ("auto", 4, [1, 3], 1), ("auto", 5, [2, 2], 1 / 2),
    ],
)  # fmt: skip
def test_gpus_are_dealt_out_alike_and_all_workers_have_room(
    device: str, workers: int, per_node: list[int], each: float
) -> None:
    found = gpus_each(EngineSettings(workers, device=device), per_node)
    assert found == each
    assert not found or sum(int(count / found) for count in per_node) >= workers


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize(("device", "seen"), [("cuda", {"0", "1"}), ("auto", {"0", "1"}), ("cuda:1", {None})])
def test_each_worker_sees_the_gpu_that_is_its_own(
    device: str, seen: set[str | None], ray: Any, tmp_path: Path
) -> None:
    def make_worker() -> Callable[[int], str | None]:
        (tmp_path / str(os.getpid())).touch()

        def visible(item: int) -> str | None:
            deadline = time.monotonic() + 120
            while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
                time.sleep(0.1)  # so that one does not do all while the other starts
            time.sleep(0.5)
            return os.environ.get("CUDA_VISIBLE_DEVICES")

        return visible

    with open_engine("ray", make_worker, EngineSettings(2, device=device)) as engine:
        assert set(engine.map(range(6))) == seen


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_bug_in_a_worker_keeps_its_traceback(ray: Any) -> None:
    engine = open_engine("ray", lambda: lambda item: 1 // item)
    with engine, pytest.raises(ZeroDivisionError, match="1 // item"):
        engine.map([0])


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_worker_that_is_killed_changes_no_result(ray: Any, tmp_path: Path) -> None:
    make_worker = squares(tmp_path, dies(tmp_path, always=False))
    with open_engine("ray", make_worker, EngineSettings(num_workers=2)) as engine:
        assert engine.map(range(8)) == [item * item for item in range(8)]
    assert (tmp_path / "died").exists()


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_an_item_that_kills_every_worker_ends_in_one_clear_error(ray: Any, tmp_path: Path) -> None:
    make_worker = squares(tmp_path, dies(tmp_path, always=True))
    engine = open_engine("ray", make_worker, EngineSettings(num_workers=2))
    with engine, pytest.raises(EngineError, match="lost 3 workers in a row over item 3") as caught:
        engine.map(range(8))
    assert "\n" not in caught.value.message


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_workers_that_die_while_loading_end_in_one_clear_error(ray: Any) -> None:
    def make_worker() -> Callable[[int], int]:
        os._exit(1)

    engine = open_engine("ray", make_worker)
    with engine, pytest.raises(EngineError, match="lost 3 workers in a row while loading"):
        engine.map([1])


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_workers_are_gone_when_the_engine_is_closed(ray: Any) -> None:
    with open_engine("ray", lambda: lambda item: os.getpid(), EngineSettings(num_workers=2)) as engine:
        pids = set(engine.map(range(4)))
    assert ray.is_initialized()  # not started by the engine
    until = time.monotonic() + 20
    while time.monotonic() < until and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_ray_started_by_the_engine_ends_with_it(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.shutdown()
    with open_engine("ray", squares(tmp_path)) as engine:
        assert engine.map([3]) == [9]
        assert ray.get_runtime_context().gcs_address.startswith("127.0.0.1:")
    assert not ray.is_initialized()


def test_a_missing_ray_is_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError) as caught:
        open_engine("ray", lambda: abs)
    assert caught.value.message == "The engine 'ray' needs Ray, which is not installed."
    assert caught.value.hint == "pip install 'tapioca-export[ray]'"


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("address", ["127.0.0.1:9", "nonsense"])
def test_an_address_without_a_cluster_is_one_line(address: str) -> None:
    ray = pytest.importorskip("ray")
    ray.shutdown()
    with pytest.raises(ConfigError, match=f"No Ray cluster can be used at '{address}'"):
        open_engine("ray", lambda: abs, EngineSettings(ray_address=address))


def test_a_misspelt_engine_gets_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'local'"):
        open_engine("locl", lambda: abs)


def test_settings_that_the_engine_cannot_use_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one worker"):
        EngineSettings(num_workers=0)
    for settings in (EngineSettings(num_workers=2), EngineSettings(ray_address="auto")):
        with pytest.raises(ConfigError, match="local engine has one worker"):
            open_engine("local", lambda: abs, settings)


def test_every_engine_says_what_it_is_in_one_line() -> None:
    for engine in ENGINES.values():
        assert (engine.__doc__ or "").splitlines()[0].endswith(".")
