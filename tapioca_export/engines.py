"""Where work runs: one worker in this process, or several on Ray.

An engine is given a factory of workers, not a function with a model inside: the factory travels to
each worker's process and loads the weights there, once. Knows nothing about what a worker does.
Never for measuring latency: neighbours falsify it. To add an engine, register one class in `ENGINES`.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .errors import ConfigError, EngineError, TapiocaError, first_line
from .registry import Table

logger = logging.getLogger(__name__)

Worker = Callable[[Any], Any]
MakeWorker = Callable[[], Worker]

MAX_LOSSES = 3  # workers one item may lose, and workers that may die in a row while they load
PATIENCE_S = 60.0  # without an item at work, before the user is told what is waited for
CONNECT_S = 10.0  # Ray itself keeps trying a dead address for more than seven minutes (2.60)
# How a client begins HTTP/2, which Ray speaks, with settings that change nothing (RFC 9113, 3.4); the server
# answers with its own, a frame of this type, whose head has so many bytes with the type at the fourth.
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
HTTP2_SETTINGS, HTTP2_HEAD = b"\x04", 9
# Set before Ray is imported, for its own processes too; what the user has set stays.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else old versions hide every GPU from the workers
}
# In spite of its name it works on Linux too: the servers of a local cluster listen on loopback only.
RAY_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class EngineSettings:
    """How many workers, and where.

    Args:
        num_workers: Processes that work at the same time; `local` has one, and refuses more.
        ray_address: Of a running cluster ("host:port", "auto"), whose nodes have this package and
            the same versions of Python and Ray; None starts a cluster on this machine. For `ray` only.
        device: Where workers load the model, in PyTorch's words or `auto`; on `cuda` each has GPUs of its own
            as far as they go, see `gpus_each`.
    """

    num_workers: int = 1
    ray_address: str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse fewer workers than one."""
        if self.num_workers < 1:
            raise ConfigError(f"An engine needs at least one worker, got {self.num_workers}.")


class Engine(Protocol):
    """Workers behind one call; as a context manager it is closed at the end."""

    num_workers: int

    @abstractmethod
    def map(self, items: Sequence[Any]) -> list[Any]:
        """Return the worker's results in the order of the items, whichever finishes first.

        Raises:
            TapiocaError: What the worker itself raised; the first one ends the call.
            EngineError: If workers are lost again and again.
        """

    @abstractmethod
    def close(self) -> None:
        """Let the workers go; a second call does nothing."""

    def __enter__(self) -> Engine:
        """Return the engine."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the engine, whatever happened."""
        self.close()


ENGINES: Table[Callable[[MakeWorker, EngineSettings], Engine]] = Table("engine")


def open_engine(name: str, make_worker: MakeWorker, settings: EngineSettings | None = None) -> Engine:
    """Return the engine of that name, to be used in a `with` block.

    Args:
        name: A key of `ENGINES`.
        make_worker: Called once in each worker's process; returns what turns one item into its
            result. For `ray` it must survive cloudpickle, and it also sets the number of threads.
        settings: How many workers, and where.

    Raises:
        UnknownNameError: If there is no engine of that name.
        ConfigError: If the settings do not go with the engine, or Ray is missing or out of reach.
    """
    return ENGINES[name](make_worker, settings or EngineSettings())


@ENGINES.add("local")
class LocalEngine(Engine):
    """One worker in this process, made when the first item arrives."""

    def __init__(self, make_worker: MakeWorker, settings: EngineSettings) -> None:
        if settings.num_workers != 1 or settings.ray_address is not None:
            raise ConfigError(
                f"The local engine has one worker and no cluster, got {settings}.", "Choose the engine 'ray'."
            )
        self.num_workers = 1
        self._make_worker = make_worker
        self._worker: Worker | None = None

    def map(self, items: Sequence[Any]) -> list[Any]:
        """Do one item after the other."""
        if self._worker is None and items:
            self._worker = self._make_worker()
        return [self._worker(item) for item in items] if self._worker else []

    def close(self) -> None:
        """Forget the worker, and with it the weights it holds."""
        self._worker = None


@ENGINES.add("ray")
class RayEngine(Engine):
    """Processes on this machine or on a cluster; what a lost one was doing is done again."""

    def __init__(self, make_worker: MakeWorker, settings: EngineSettings) -> None:
        self.num_workers = settings.num_workers
        self._make_worker = make_worker
        self._ray = _import_ray(settings.ray_address)
        # A Ray that the caller has started is used as it is, and stays.
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            _connect(self._ray, settings)
        self._settings = settings
        # One CPU reserved for each worker makes Ray set OMP_NUM_THREADS=1 there, unless the variable
        # has a value already; torch.set_num_threads in make_worker overrides it.
        self._process = self._ray.remote(num_cpus=1, max_restarts=0)(_Process)
        kinds = self._ray.exceptions
        self._lost = (
            kinds.RayActorError, kinds.WorkerCrashedError, kinds.NodeDiedError, kinds.OutOfMemoryError,
            kinds.ObjectLostError,  # a result that was lost with its node
        )  # fmt: skip
        self._free: deque[Any] = deque()
        self._busy: dict[Any, tuple[Any, int | None]] = {}  # call -> process, item (None: it loads)
        self._is_closed = False

    def map(self, items: Sequence[Any]) -> list[Any]:
        """Give every worker that is free the next item; an error stops all of them."""
        if self._is_closed:  # Ray would start anew, unasked
            raise ValueError("the engine is closed")
        todo, results, losses = deque(range(len(items))), dict[int, Any](), Counter[int | None]()
        try:
            while len(results) < len(items):
                self._start(len(items) - len(results))
                while todo and self._free:
                    process, index = self._free.popleft(), todo.popleft()
                    self._busy[process.run.remote(items[index])] = process, index
                for call in self._wait():
                    process, done = self._busy.pop(call)
                    try:
                        values, failure = self._ray.get(call)
                    except self._lost as error:
                        self._ray.kill(process)
                        losses[done] += 1
                        if losses[done] >= MAX_LOSSES:
                            raise _gave_up(done, error) from error
                        todo.extendleft([] if done is None else [done])
                        continue
                    if failure:
                        raise _rebuilt(*failure)
                    losses[None] = 0
                    self._free.append(process)
                    if done is not None:
                        results[done] = values[0]
        except BaseException:  # Ctrl-C too
            self._stop()
            raise
        return [results[index] for index in range(len(items))]

    def close(self) -> None:
        """Kill the workers, and shut down the Ray that was started here."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._stop()
        finally:
            if self._is_ours:
                self._ray.shutdown()

    def _start(self, num_items: int) -> None:
        """Bring the workers up to strength; each loads before it is given an item.

        So an item never waits for a worker that the cluster has no room for.
        """
        while len(self._free) + len(self._busy) < min(self.num_workers, num_items):
            # As the nodes are now: one may have gone with the workers that are replaced.
            per_node = [int(node["Resources"].get("GPU", 0)) for node in self._ray.nodes() if node["Alive"]]
            made = self._process.options(num_gpus=gpus_each(self._settings, per_node))
            process = made.remote(self._make_worker)
            self._busy[process.run.remote()] = process, None

    def _wait(self) -> list[Any]:
        done, _ = self._ray.wait(list(self._busy), timeout=PATIENCE_S)
        if not done and all(index is None for _, index in self._busy.values()):
            logger.warning(
                "No Ray worker is ready: the model is loading, or the cluster has no free CPU or GPU."
            )
        return list(done)

    def _stop(self) -> None:
        processes = [*self._free, *(process for process, _ in self._busy.values())]
        self._free.clear()
        self._busy.clear()
        for process in processes:
            self._ray.kill(process)


def gpus_each(settings: EngineSettings, per_node: Sequence[int]) -> float:
    """Return how many GPUs each worker reserves; a worker's GPUs are of one node.

    On `cuda` one, on `auto` as many as all workers can have alike; less than one where workers share.

    Args:
        settings: Workers, and their device; `cuda:1` is that of every node, and reserves none.
        per_node: GPUs of each node.
    """
    most = max(per_node, default=0)
    if settings.device not in ("cuda", "auto") or not most:
        return 0

    def room(size: float) -> int:
        return sum(int(count // size) for count in per_node)

    whole = [size for size in range(1, most + 1) if room(size) >= settings.num_workers]
    if whole:
        return whole[-1] if settings.device == "auto" else 1
    return 1 / -(-settings.num_workers // sum(per_node))


class _Process:
    """What lives in a Ray worker's process."""

    def __init__(self, make_worker: MakeWorker) -> None:
        # Not called here: Ray takes an error in a constructor for a lost worker.
        self._make_worker = make_worker
        self._worker: Worker | None = None

    def run(self, *items: Any) -> tuple[list[Any], tuple[Any, ...] | None]:
        """Load if that is still to do, then do the items; return results, and an error of ours in parts.

        In parts, since Ray would wrap it, and unpickling calls constructors with other arguments.
        """
        try:
            if self._worker is None:
                self._worker = self._make_worker()
            return [self._worker(item) for item in items], None
        except TapiocaError as error:
            return [], (type(error), error.args, vars(error))


def _rebuilt(kind: type[TapiocaError], args: tuple[Any, ...], state: dict[str, Any]) -> TapiocaError:
    error = kind.__new__(kind, *args)
    vars(error).update(state)
    return error


def _gave_up(index: int | None, error: Exception) -> EngineError:
    task = "while loading the model" if index is None else f"over item {index}"
    return EngineError(
        f"Ray lost {MAX_LOSSES} workers in a row {task}: {first_line(error)}",
        "Often memory: use fewer workers; Ray's logs (/tmp/ray/session_latest/logs) say more.",
    )


def _import_ray(address: str | None) -> Any:
    for name, value in (RAY_ENVIRONMENT | (RAY_LOOPBACK if address is None else {})).items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "The engine 'ray' needs Ray, which is not installed.", "pip install 'tapioca-export[ray]'"
        ) from error
    return ray


def _check_listens(address: str) -> None:
    """Refuse an address where nothing speaks Ray's protocol.

    Raises:
        OSError: If nothing does, or not within `CONNECT_S`.
        ValueError: If it is no address.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    with socket.create_connection((host, int(port)), CONNECT_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() not in ("0", "false"):
            return  # it would not answer in plain words
        connection.sendall(HTTP2_PREFACE)
        with connection.makefile("rb") as answer:
            if answer.read(HTTP2_HEAD)[3:4] != HTTP2_SETTINGS:
                raise ConnectionError("what answers there is not Ray")


def _connect(ray: Any, settings: EngineSettings) -> None:
    address, quiet = settings.ray_address, {"log_to_driver": False, "logging_level": logging.ERROR}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            num_cpus = max(settings.num_workers, os.cpu_count() or 1)  # room for every worker
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **quiet)
        else:
            if address != "auto":
                _check_listens(address)
            ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        ray.shutdown()
        where = "Ray does not start" if address is None else f"No Ray cluster can be used at {address!r}"
        hint = (
            None if address is None else "Is it host:port of the head node? Tokens need RAY_AUTH_MODE=token."
        )
        raise ConfigError(f"{where}: {first_line(error)}", hint) from error
    finally:
        # Ray's own ends the process before anything is cleaned up.
        if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
