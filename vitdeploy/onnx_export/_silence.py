"""Silence what exporters print, log and warn of: users can do nothing about it, and failures are reported."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Discard warnings, log records up to ERROR, and all that Python and C++ code writes to stdout.

    A failing exporter prints the graph that it has so far, logs a traceback of its own for every error that it handles,
    and runs the model's `print` once more. Progress bars are on stderr, and go on.
    """
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), _stdout_off(), _graphs_not_printed():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _graphs_not_printed() -> Iterator[None]:
    """Silence `print` where torch.export prints the graph that it has so far when it fails: that goes to stderr."""
    import torch.export._trace as module

    names = vars(module)
    names["print"] = lambda *_, **__: None
    try:
        yield
    finally:
        del names["print"]


@contextlib.contextmanager
def _stdout_off() -> Iterator[None]:
    """Discard what is written to stdout: by Python code to the stream, by C++ code to the descriptor."""
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        with Path(os.devnull).open("w") as devnull, contextlib.redirect_stdout(devnull):
            os.dup2(devnull.fileno(), 1)
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
