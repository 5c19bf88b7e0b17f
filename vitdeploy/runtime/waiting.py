"""Settings for how the threads of PyTorch wait for one another."""

from __future__ import annotations

import os


def sleep_while_waiting() -> None:
    """Let PyTorch's threads sleep, not spin, while they wait for one another; a choice of the user's stays.

    For commands that time nothing, before PyTorch is imported: its OpenMP reads the variable once. By default a thread
    spins after its part of each operator. If other programs use the CPU, it spins while the thread that it waits for
    gets no turn, and most of its CPU time is lost.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
