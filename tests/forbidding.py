"""What no run may do, made to fail, in the processes that it starts too: use the network, load pickles."""

from __future__ import annotations

import pickle  # noqa: TID251 - to forbid it
import socket
from collections.abc import Callable
from types import SimpleNamespace

import forking
import pytest
from forking import run_forked


def forbid_network(patch: pytest.MonkeyPatch) -> None:
    """Let every connection and every look-up of a host fail; sockets of one machine's processes work."""
    whole = socket.socket.connect

    def connect(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX:
            raise AssertionError(f"a socket was connected to {address}")
        whole(self, address)

    def look_up(host: object, *more: object, **named: object) -> None:
        raise AssertionError(f"the address of {host} was looked up")

    for name in ("connect", "connect_ex"):
        patch.setattr(socket.socket, name, connect)
    patch.setattr(socket, "getaddrinfo", look_up)


def forbid_pickles(patch: pytest.MonkeyPatch) -> None:
    """Let every load of a pickle fail."""
    import torch

    def load(*arguments: object, **named: object) -> None:
        raise AssertionError("a pickle was loaded")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        patch.setattr(module, name, load)


def forbid_network_everywhere(patch: pytest.MonkeyPatch) -> None:
    """Let the network be forbidden here, and in the processes that a run starts."""
    from tapioca_export.benchmarking import memory
    from tapioca_export.models import proof

    def run_module(command: list[str], input: bytes = b"", **_: object) -> object:
        return run_forked(without_network, forking._run_module, *command[2:], stdin=input)

    forbid_network(patch)
    patch.setattr(memory, "subprocess", SimpleNamespace(run=run_module))
    patch.setattr(proof, "_run_fresh", lambda job: run_forked(without_network, proof._reload, stdin=job))


def without_network(function: Callable[..., object], *arguments: object) -> None:
    """Call a function in a process where the network is forbidden."""
    with pytest.MonkeyPatch.context() as patch:
        forbid_network(patch)
        function(*arguments)
