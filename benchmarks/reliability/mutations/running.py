"""Commands at the pace of tests: the fresh process of each proof is forked from one that has done nothing.

The fork comes from a process that has imported the libraries before anything was broken, so that no mutant
reaches the other side of a proof.
"""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from transformers.utils import logging

from . import models  # noqa: F401  (finds the tests' helpers)

# isort: split
from forking import run_forked, run_module
from quickening import quicken

from tapioca_export.benchmarking import memory
from tapioca_export.models import proof

from .base import Patch


@contextmanager
def as_in_tests() -> Iterator[None]:
    """Fork where the product starts Python, and pay once for what is the same at every export."""
    forked = SimpleNamespace(run=run_module, DEVNULL=subprocess.DEVNULL)
    with Patch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(logging, "_tqdm_active", False)
        patch.setattr(proof, "_run_fresh", lambda job: run_forked(proof._reload, stdin=job))
        patch.setattr(memory, "NUM_CHILDREN", 1)
        patch.setattr(memory, "subprocess", forked)
        quicken(patch)
        yield
