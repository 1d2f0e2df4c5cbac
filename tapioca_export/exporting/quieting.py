"""Silence of other people's exporters, optimisers and quantisers."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence exporters: they print (a refused graph as a whole), and warn of what is not needed."""
    previous = logging.root.manager.disable
    try:
        logging.disable(logging.ERROR)  # what is an error is raised as well
        unread = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(unread),
            contextlib.redirect_stderr(unread),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
